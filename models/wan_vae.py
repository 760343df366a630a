"""The Wan 2.1 causal 3D VAE as a streaming codec. Space / 8, time / 4, first frame alone.

Parameter names are those of the official ``Wan2.1_VAE.pth``.

Inside, a clip is a batch of frames [T, C, H, W]; ``causal_conv`` says why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from liveedit.config import WanVAEConfig
from liveedit.errors import UsageError
from liveedit.models.causal_conv import CacheWalk, CausalConv3d, FrameConv3d

# Per-channel statistics of the raw latent of the official weights.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
FRAMES_PER_LATENT = 4


class WanVAE(nn.Module):
    """Pixels p in [0, 1] go in as they are and come out clamped to [0, 1].

    The checkpoint was trained on [-1, 1], but LiveEdit's DiT saw latents of [0, 1] pixels.
    Latents are normalised: (raw - LATENT_MEAN) / LATENT_STD.

    A step takes all caches of its half and returns all of them, in execution order.
    """

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        if config.latent_channels != len(LATENT_MEAN):
            raise UsageError(
                f"latent_channels is {config.latent_channels}; the Wan VAE has {len(LATENT_MEAN)}"
            )
        self.config = config
        self.encoder = _Encoder(config)
        self.conv1 = FrameConv3d(2 * config.latent_channels, 2 * config.latent_channels)
        self.conv2 = FrameConv3d(config.latent_channels, config.latent_channels)
        self.decoder = _Decoder(config)

    # Streaming: what is exported.

    def encode_step(
        self, frames: Tensor, caches: Sequence[Tensor], first: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode the next pixel frames of a stream.

        Args:
            frames: [1, 3, n, H, W] in [0, 1]; n is 1 for the first call, else 4.
            caches: as ``encode_cache_shapes`` says; zeros for the first call.
            first: the graph differs: time is downsampled from the second call on.

        Returns:
            latent [1, 16, 1, H / 8, W / 8] normalised, and the caches for the next call.
        """
        raw, new = self._encode_step(frames[0].transpose(0, 1), caches, first)
        return self._normalise(raw).unsqueeze(2), new

    def decode_step(
        self, latent: Tensor, caches: Sequence[Tensor], first: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode the next latent of a stream.

        Args:
            latent: [1, 16, 1, h, w] normalised.
            caches: as ``decode_cache_shapes`` says; zeros for the first call.
            first: the graph differs: time is upsampled from the second call on.

        Returns:
            frames [1, 3, 1 if first else 4, 8h, 8w] in [0, 1], and the caches for the next call.
        """
        frames, new = self._decode_step(self._raw(latent[:, :, 0]), caches, first)
        return frames.clamp(0, 1).transpose(0, 1).unsqueeze(0), new

    def encode_cache_shapes(self, height_px: int, width_px: int) -> list[tuple[int, ...]]:
        """Shapes of the encoder's caches, [frames, C, H, W] each, in execution order."""
        twin = self._on_meta()
        frames = torch.empty(1, 3, height_px, width_px, device="meta")
        return [tuple(c.shape) for c in twin._encode_step(frames, None, first=True)[1]]

    def decode_cache_shapes(self, height_px: int, width_px: int) -> list[tuple[int, ...]]:
        """Shapes of the decoder's caches, [frames, C, H, W] each, in execution order."""
        twin = self._on_meta()
        scale = 2 ** (len(self.config.dim_mult) - 1)
        shape = (1, self.config.latent_channels, height_px // scale, width_px // scale)
        latent = torch.empty(shape, device="meta")
        return [tuple(c.shape) for c in twin._decode_step(latent, None, first=True)[1]]

    def fold_time_(self) -> WanVAE:
        """Run every convolution in its 2D form. In place; the state dict is then unofficial."""
        for module in self.modules():
            if isinstance(module, FrameConv3d):
                module.fold_time_()
        return self

    # Whole clips.

    def encode(self, frames: Tensor) -> Tensor:
        """[B, 3, 1 + 4k, H, W] in [0, 1] -> [B, 16, 1 + k, H / 8, W / 8], normalised."""
        return self._normalise(self.encode_raw(frames))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, n, h, w] normalised -> [B, 3, 4n - 3, 8h, 8w] clamped to [0, 1]."""
        return self.decode_raw(self._raw(latents)).clamp(0, 1)

    def encode_raw(self, frames: Tensor) -> Tensor:
        """[B, 3, 1 + 4k, H, W] -> mean of the latent, [B, 16, 1 + k, H / 8, W / 8].

        Raises:
            UsageError: the frame count is not 1 + 4k.
        """
        if frames.shape[2] % FRAMES_PER_LATENT != 1:
            raise UsageError(
                f"the Wan VAE encodes 1 + 4k frames, got {frames.shape[2]}; repeat the last frame"
            )
        return torch.stack([self._encode_clip(clip.transpose(0, 1)) for clip in frames])

    def decode_raw(self, latents: Tensor) -> Tensor:
        """[B, 16, n, h, w] un-normalised -> [B, 3, 4n - 3, 8h, 8w], not clamped."""
        return torch.stack([self._decode_clip(clip.transpose(0, 1)) for clip in latents])

    def _encode_clip(self, frames: Tensor) -> Tensor:
        latents, caches = [], None
        for group in frames[:1], *torch.split(frames[1:], FRAMES_PER_LATENT):
            if group.shape[0]:
                latent, caches = self._encode_step(group, caches, first=caches is None)
                latents.append(latent)
        return torch.cat(latents).transpose(0, 1)

    def _decode_clip(self, latents: Tensor) -> Tensor:
        frames, caches = [], None
        for latent in torch.split(latents, 1):
            group, caches = self._decode_step(latent, caches, first=caches is None)
            frames.append(group)
        return torch.cat(frames).transpose(0, 1)

    # One step on [T, C, H, W]; no caches means zeros.

    def _encode_step(
        self, frames: Tensor, caches: Sequence[Tensor] | None, first: bool
    ) -> tuple[Tensor, list[Tensor]]:
        expected = 1 if first else FRAMES_PER_LATENT
        assert frames.shape[0] == expected, (frames.shape, expected)
        walk = CacheWalk(caches, first)
        moments = self.conv1(self.encoder(frames, walk))
        return moments[:, : self.config.latent_channels], walk.finish()

    def _decode_step(
        self, latent: Tensor, caches: Sequence[Tensor] | None, first: bool
    ) -> tuple[Tensor, list[Tensor]]:
        walk = CacheWalk(caches, first)
        frames: Tensor = self.decoder(self.conv2(latent), walk)
        return frames, walk.finish()

    def _normalise(self, raw: Tensor) -> Tensor:
        mean, std = self._statistics(raw)
        return (raw - mean) / std

    def _raw(self, latent: Tensor) -> Tensor:
        mean, std = self._statistics(latent)
        return latent * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Not buffers: a module built on the meta device would be left without their values.
        shape = [-1] + [1] * (like.dim() - 2)
        mean, std = (like.new_tensor(values).view(shape) for values in (LATENT_MEAN, LATENT_STD))
        return mean, std

    def _on_meta(self) -> WanVAE:
        with torch.device("meta"):
            return WanVAE(self.config)


class _Norm(nn.Module):
    """x / ||x|| * sqrt(C) * gamma over the channels of [T, C, H, W]."""

    def __init__(self, channels: int, trailing_dims: int = 3) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * trailing_dims))

    def forward(self, x: Tensor) -> Tensor:
        # The norm is summed in float32, but the large product stays in the type of x: otherwise
        # engines keep a float32 copy of x between the two kernels. The upper bound stops 0 * inf.
        norm = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)
        gain = (self.scale / norm.clamp_min(1e-12)).clamp_max(torch.finfo(x.dtype).max)
        out: Tensor = x * gain.to(x.dtype) * self.gamma.view(-1, 1, 1)
        return out


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _Norm(in_channels),
            nn.SiLU(),
            CausalConv3d(in_channels, out_channels),
            _Norm(out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout, always off; it holds the place in the official names
            CausalConv3d(out_channels, out_channels),
        )
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else FrameConv3d(in_channels, out_channels)
        )

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        out: Tensor = self.shortcut(x) + _run(self.residual, x, walk)
        return out


class _Attention(nn.Module):
    """Each frame attends to itself, one head over all pixels.

    Written out: engines have no fused kernel for a head this wide.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _Norm(channels, trailing_dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).chunk(3, dim=1)  # [T, C, H * W] each
        scores = (q * self.scale).transpose(1, 2) @ k  # [T, H * W, H * W]
        out = v @ scores.softmax(dim=-1).transpose(1, 2)  # [T, C, H * W]
        projected: Tensor = self.proj(out.reshape(x.shape))
        return x + projected


class _Downsample(nn.Module):
    """Space / 2 and, with ``temporal``, time / 2 from the second call on."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        self.time_conv = (
            FrameConv3d(channels, channels, (3, 1), time_stride=2) if temporal else None
        )

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        x = self.resample(x)
        if self.time_conv is None:
            return x
        if walk.first:
            walk.start(x)
            return x
        out: Tensor = self.time_conv(x, walk.past(x, frames=1))
        return out


class _Upsample(nn.Module):
    """Space * 2 with half the channels and, with ``temporal``, time * 2 from the second call on."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )
        self.time_conv = FrameConv3d(channels, 2 * channels, (3, 1)) if temporal else None

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        if self.time_conv is not None:
            if walk.first:
                walk.skip(x)
            else:
                T, C, H, W = x.shape
                pairs = self.time_conv(x, walk.past(x))  # [T, 2 * C, H, W]: even frame, odd frame
                x = pairs.reshape(2 * T, C, H, W)
        out: Tensor = self.resample(x)
        return out


class _Encoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in config.dim_mult]
        self.conv1 = CausalConv3d(3, config.base_dim)
        layers: list[nn.Module] = []
        channels = config.base_dim
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers.append(_ResidualBlock(channels, width))
                channels = width
            if level < len(widths) - 1:
                layers.append(_Downsample(width, config.temporal_downsample[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(channels)
        self.head = _head(channels, 2 * config.latent_channels)

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        x = self.conv1.step(x, walk)
        for part in (self.downsamples, self.middle, self.head):
            x = _run(part, x, walk)
        return x


class _Decoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in reversed(config.dim_mult)]
        temporal = config.temporal_downsample[::-1]
        channels = widths[0]
        self.conv1 = CausalConv3d(config.latent_channels, channels)
        self.middle = _middle(channels)
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks + 1):
                layers.append(_ResidualBlock(channels, width))
                channels = width
            if level < len(widths) - 1:
                layers.append(_Upsample(width, temporal[level]))
                channels = width // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(channels, 3)

    def forward(self, x: Tensor, walk: CacheWalk) -> Tensor:
        x = self.conv1.step(x, walk)
        for part in (self.middle, self.upsamples, self.head):
            x = _run(part, x, walk)
        return x


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        _ResidualBlock(channels, channels),
        _Attention(channels),
        _ResidualBlock(channels, channels),
    )


def _head(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(_Norm(channels), nn.SiLU(), CausalConv3d(channels, out_channels))


def _run(layers: nn.Sequential, x: Tensor, walk: CacheWalk) -> Tensor:
    for layer in layers:
        if isinstance(layer, CausalConv3d):
            x = layer.step(x, walk)
        elif isinstance(layer, _ResidualBlock | _Downsample | _Upsample):
            x = layer(x, walk)
        else:
            x = layer(x)
    return x
