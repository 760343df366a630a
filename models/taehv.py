"""TAEHV, the tiny video autoencoder. Key names and layer numbers are those of taew2_1 files.

Space / 8, time / 4. One latent frame is made from 4 pixel frames and becomes 4 again; memory goes
one frame back in each `MemBlock`, so a clip can be coded in one pass or 4 frames at a time with the
same result. Latent k reads frames 4k .. 4k+3 and is decoded to frames 4k-3 .. 4k, which is why the
first 3 decoded frames of a stream are dropped.

Interface tensors are NCTHW; inside, layers see [N, T, C, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveedit.config import TAEHVConfig

FRAMES_PER_LATENT = 4
LEADING_FRAMES = 3  # decoded before the first real frame of a stream; drop them


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


class Clamp(nn.Module):
    """Soft bound of latents to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """Residual block that also sees its own input one frame earlier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width),
            nn.ReLU(inplace=True),
            _conv(width, width),
            nn.ReLU(inplace=True),
            _conv(width, width),
        )

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """x, past: [N, C, H, W], past is x one frame earlier; returns [N, C, H, W]."""
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)


class TPool(nn.Module):
    """`stride` consecutive frames become one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, C, H, W], T a multiple of stride, to [T / stride, C, H, W]."""
        T, C, H, W = x.shape
        out: Tensor = self.conv(x.reshape(T // self.stride, self.stride * C, H, W))
        return out


class TGrow(nn.Module):
    """One frame becomes `stride` frames."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, C, H, W] to [T * stride, C, H, W]."""
        T, C, H, W = x.shape
        out: Tensor = self.conv(x)
        return out.reshape(T * self.stride, C, H, W)


class TAEHV(nn.Module):
    """Encoder and decoder of one `TAEHVConfig`."""

    def __init__(self, config: TAEHVConfig) -> None:
        super().__init__()
        self.config = config
        e, z = config.encoder_width, config.latent_channels
        a, b, c, d = config.decoder_widths
        self.encoder = nn.Sequential(
            *(_conv(3, e), nn.ReLU(inplace=True)),
            *(TPool(e, 2), _conv(e, e, stride=2, bias=False), *(MemBlock(e) for _ in range(3))),
            *(TPool(e, 2), _conv(e, e, stride=2, bias=False), *(MemBlock(e) for _ in range(3))),
            *(TPool(e, 1), _conv(e, e, stride=2, bias=False), *(MemBlock(e) for _ in range(3))),
            _conv(e, z),
        )
        up = nn.Upsample(scale_factor=2)
        self.decoder = nn.Sequential(
            *(Clamp(), _conv(z, a), nn.ReLU(inplace=True), *(MemBlock(a) for _ in range(3))),
            *(up, TGrow(a, 1), _conv(a, b, bias=False), *(MemBlock(b) for _ in range(3))),
            *(up, TGrow(b, 2), _conv(b, c, bias=False), *(MemBlock(c) for _ in range(3))),
            *(up, TGrow(c, 2), _conv(c, d, bias=False)),
            *(nn.ReLU(inplace=True), _conv(d, 3)),
        )

    # ---- whole clips

    def encode(self, frames: Tensor) -> Tensor:
        """[N, 3, T, H, W] in [0, 1], H and W multiples of 8, to [N, 16, ceil(T / 4), H/8, W/8].

        The last frame is repeated until T is a multiple of 4.
        """
        short = -frames.shape[2] % FRAMES_PER_LATENT
        if short:
            frames = torch.cat([frames, frames[:, :, -1:].expand(-1, -1, short, -1, -1)], 2)
        return self._encode(frames, None)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """[N, 16, n, h, w] to [N, 3, 4n - 3, 8h, 8w], clamped to [0, 1]."""
        return self.decode_raw(latent).clamp(0, 1)

    def decode_raw(self, latent: Tensor) -> Tensor:
        """`decode` without the clamp, which has no gradient outside [0, 1]."""
        return self._decode(latent, None)[0][:, :, LEADING_FRAMES:]

    # ---- 4 frames at a time

    def encode_step(self, frames: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Next 4 frames of a stream to its next latent frame.

        Args:
            frames: [1, 3, 4, H, W] in [0, 1].
            caches: `encode_cache_shapes` tensors, zeros at the start of a stream.

        Returns:
            [1, 16, 1, H/8, W/8] and the caches of the next call, new memory.
        """
        return self._encode(frames, caches)

    def decode_step(self, latent: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Next latent frame [1, 16, 1, h, w] to 4 frames [1, 3, 4, 8h, 8w], clamped to [0, 1].

        The caller drops the first `LEADING_FRAMES` frames of a stream. Caches as in `encode_step`.
        """
        frames, caches = self._decode(latent, caches)
        return frames.clamp(0, 1), caches

    def encode_cache_shapes(self, height_px: int, width_px: int) -> list[tuple[int, ...]]:
        """[1, C, H, W] of every encoder memory, in execution order."""
        width = self.config.encoder_width
        return [
            (1, width, height_px // scale, width_px // scale) for scale in (2, 4, 8) for _ in "123"
        ]

    def decode_cache_shapes(self, height_px: int, width_px: int) -> list[tuple[int, ...]]:
        """[1, C, H, W] of every decoder memory, in execution order."""
        widths = self.config.decoder_widths[:3]
        return [
            (1, width, height_px // scale, width_px // scale)
            for width, scale in zip(widths, (8, 4, 2), strict=True)
            for _ in "123"
        ]

    # ---- one path for both

    def _encode(self, frames: Tensor, caches: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if self.config.pixel_convention == "wan":
            frames = (frames + 1) / 2
        return _run(self.encoder, frames, caches)

    def _decode(self, latent: Tensor, caches: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        frames, caches = _run(self.decoder, latent, caches)
        if self.config.pixel_convention == "wan":
            frames = 2 * frames - 1
        return frames, caches


def _run(
    layers: nn.Sequential, x: Tensor, caches: list[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """Run NCTHW `x` through `layers`; a MemBlock takes and leaves one cache, None means zeros."""
    N = x.shape[0]
    x = x.transpose(1, 2).flatten(0, 1)  # [N * T, C, H, W]
    new: list[Tensor] = []
    for layer in layers:
        if isinstance(layer, MemBlock):
            frames = x.reshape(N, -1, *x.shape[1:])  # [N, T, C, H, W]
            first = torch.zeros_like(frames[:, 0]) if caches is None else caches[len(new)]
            past = torch.cat([first.unsqueeze(1), frames[:, :-1]], 1)
            new.append(frames[:, -1])
            x = layer(x, past.flatten(0, 1))
        else:
            x = layer(x)
    return x.reshape(N, -1, *x.shape[1:]).transpose(1, 2), new


def trim_growth(state: Mapping[str, Tensor], model: TAEHV) -> dict[str, Tensor]:
    """`state` with the leading output rows of too tall TGrow weights cut off.

    Some published files were made for a model that grows time by more; its last rows are ours.
    """
    wanted = model.state_dict()
    return {
        key: value[-wanted[key].shape[0] :]
        if key.startswith("decoder.") and key.endswith("conv.weight") and key in wanted
        else value
        for key, value in state.items()
    }
