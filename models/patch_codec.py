"""The codec of the `tiny` editor: a linear patch encoder and a decoder that works on latents' grid.

Space / 8, time / 4, four pixel frames to a latent: latent k is made from frames 4k .. 4k+3 and
becomes those again, so nothing is delayed and nothing dropped. The encoder is one strided
convolution (in the shipped editor a whitened principal-component basis); the decoder adds what
neighbouring patches and the previous latent tell to the linear inverse. All its convolutions run
at 1/8 of the resolution, which is what makes it fast on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveedit.config import PatchCodecConfig

FRAMES_PER_LATENT = 4
PATCH_PX = 8
_VALUES = (
    3 * FRAMES_PER_LATENT * PATCH_PX**2
)  # of one patch, in (channel, frame, row, column) order


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class PatchCodec(nn.Module):
    """Encoder and decoder. Pixels in [0, 1], latents as the DiT sees them."""

    def __init__(self, config: PatchCodecConfig) -> None:
        super().__init__()
        self.config = config
        z, width = config.latent_channels, config.width
        patch = (FRAMES_PER_LATENT, PATCH_PX, PATCH_PX)
        self.encoder = nn.Conv3d(3, z, patch, stride=patch)
        self.linear = nn.Conv2d(z, _VALUES, 1)
        self.input = nn.Conv2d(2 * z, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(config.num_blocks)))
        self.output = nn.Conv2d(width, _VALUES, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def encode(self, frames: Tensor) -> Tensor:
        """[N, 3, T, H, W], T a multiple of 4, to [N, 16, T / 4, H/8, W/8]."""
        return self.encoder(frames)

    def decode_raw(self, latent: Tensor) -> Tensor:
        """[N, 16, n, h, w] to [N, 3, 4n, 8h, 8w], not clamped. The past of the first is zero."""
        N, n = latent.shape[0], latent.shape[2]
        past = torch.cat((torch.zeros_like(latent[:, :, :1]), latent[:, :, :-1]), dim=2)
        flat = torch.cat((latent, past), dim=1).transpose(1, 2).flatten(0, 1)  # [N n, 2 z, h, w]
        pixels = self._pixels(flat).unflatten(0, (N, n))  # [N, n, 3, 4, H, W]
        return pixels.transpose(1, 2).flatten(2, 3)

    def decode(self, latent: Tensor) -> Tensor:
        """`decode_raw`, clamped to [0, 1]."""
        return self.decode_raw(latent).clamp(0, 1)

    def _pixels(self, pair: Tensor) -> Tensor:
        """Latent and past latent [N, 2 z, h, w] to pixels [N, 3, 4, 8h, 8w]."""
        N, _, h, w = pair.shape
        x = self.output(F.relu(self.blocks(self.input(pair))))
        x = x + self.linear(pair[:, : self.config.latent_channels])
        x = x.unflatten(1, (3, FRAMES_PER_LATENT, PATCH_PX, PATCH_PX))  # [N, 3, 4, 8, 8, h, w]
        x = x.permute(0, 1, 2, 5, 3, 6, 4)
        return x.reshape(N, 3, FRAMES_PER_LATENT, PATCH_PX * h, PATCH_PX * w)

    # ---- one latent at a time

    def encode_step(self, frames: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[1, 3, 4, H, W] to [1, 16, 1, h, w]. There is nothing to remember."""
        assert not caches, len(caches)
        return self.encode(frames), []

    def decode_step(self, latent: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[1, 16, 1, h, w] and the previous latent to [1, 3, 4, H, W] clamped to [0, 1]."""
        (past,) = caches
        pair = torch.cat((latent, past), dim=1).squeeze(2)
        return self._pixels(pair).clamp(0, 1), [latent.clone()]

    def encode_cache_shapes(self, height_px: int, width_px: int) -> list[tuple[int, ...]]:
        return []

    def decode_cache_shapes(self, height_px: int, width_px: int) -> list[tuple[int, ...]]:
        z = self.config.latent_channels
        return [(1, z, 1, height_px // PATCH_PX, width_px // PATCH_PX)]
