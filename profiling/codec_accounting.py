"""FLOPs, bytes and cache sizes of the codecs, layer by layer, for one steady-state step.

A step is one latent frame: 4 pixel frames in (encode) or out (decode). First steps, which see one
pixel frame, cost less and are not counted here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from liveedit.config import (
    ModelConfig,
    PatchCodecConfig,
    StreamConfig,
    TAEHVConfig,
    WanVAEConfig,
)
from liveedit.profiling.accounting import HALF, Widths, Work, attention, merge

FRAMES_PER_STEP = 4


@dataclass(frozen=True, kw_only=True)
class Conv:
    """One convolution of a step. ``frames``, ``height``, ``width`` are of its output.

    ``cached_elements`` is the history it keeps between steps.
    """

    name: str
    level: str  # e.g. "480x832": the resolution it works at
    in_channels: int
    out_channels: int
    taps: int  # kernel elements
    frames: int
    height: int
    width: int
    cached_elements: int = 0

    def work(self, widths: Widths = HALF) -> Work:
        pixels = self.frames * self.height * self.width
        weights = self.taps * self.in_channels * self.out_channels
        moved = pixels * (self.in_channels + self.out_channels) + 2 * self.cached_elements
        return Work(
            name=self.name,
            kind="convolution",
            flops=2.0 * weights * pixels,
            bytes=weights * widths.weight + moved * widths.activation,
        )


@dataclass(frozen=True, kw_only=True)
class FrameAttention:
    """Single-head attention over the pixels of each frame, 1x1 projections included."""

    name: str
    level: str
    channels: int
    height: int
    width: int
    cached_elements: int = 0

    def work(self, widths: Widths = HALF) -> Work:
        pixels = self.height * self.width
        inner = attention(self.name, pixels, pixels, self.channels, widths)
        return Work(
            name=self.name,
            kind="attention",
            flops=inner.flops + 2.0 * 4 * pixels * self.channels**2,
            bytes=inner.bytes + 8 * pixels * self.channels * widths.activation,
        )


Layer = Conv | FrameAttention


class _Walk:
    """Collects layers while a codec's shape is walked."""

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.layers: list[Layer] = []
        self.frames, self.height, self.width = frames, height, width

    @property
    def level(self) -> str:
        return f"{self.height}x{self.width}"

    def conv(self, name: str, ci: int, co: int, taps: int, cached: int = 0) -> None:
        self.layers.append(
            Conv(
                name=name,
                level=self.level,
                in_channels=ci,
                out_channels=co,
                taps=taps,
                frames=self.frames,
                height=self.height,
                width=self.width,
                cached_elements=cached * ci * self.height * self.width,
            )
        )

    def causal(self, name: str, ci: int, co: int) -> None:
        self.conv(name, ci, co, 27, cached=2)

    def residual(self, name: str, ci: int, co: int) -> None:
        self.causal(f"{name}/conv1", ci, co)
        self.causal(f"{name}/conv2", co, co)
        if ci != co:
            self.conv(f"{name}/shortcut", ci, co, 1)

    def middle(self, name: str, c: int) -> None:
        self.residual(f"{name}/0", c, c)
        for _ in range(self.frames):
            self.layers.append(
                FrameAttention(
                    name=f"{name}/attention",
                    level=self.level,
                    channels=c,
                    height=self.height,
                    width=self.width,
                )
            )
        self.residual(f"{name}/1", c, c)


def wan_encode(config: WanVAEConfig, height_px: int, width_px: int) -> list[Layer]:
    """The Wan encoder: 4 pixel frames to one latent frame."""
    walk = _Walk(FRAMES_PER_STEP, height_px, width_px)
    dims = [config.base_dim, *(config.base_dim * m for m in config.dim_mult)]
    walk.causal("encoder/conv_in", 3, dims[0])
    for i, (ci, co) in enumerate(pairwise(dims)):
        for j in range(config.num_res_blocks):
            walk.residual(f"encoder/level{i}/{j}", ci if j == 0 else co, co)
        if i + 1 < len(config.dim_mult):
            walk.height //= 2
            walk.width //= 2
            walk.conv(f"encoder/down{i}/space", co, co, 9)
            if config.temporal_downsample[i]:
                walk.frames //= 2
                walk.conv(f"encoder/down{i}/time", co, co, 3, cached=1)
    walk.middle("encoder/middle", dims[-1])
    walk.causal("encoder/conv_out", dims[-1], 2 * config.latent_channels)
    walk.conv("encoder/quant", 2 * config.latent_channels, 2 * config.latent_channels, 1)
    return walk.layers


def wan_decode(config: WanVAEConfig, height_px: int, width_px: int) -> list[Layer]:
    """The Wan decoder: one latent frame to 4 pixel frames."""
    walk = _Walk(1, height_px // 8, width_px // 8)
    mult = [config.dim_mult[-1], *config.dim_mult[::-1]]
    dims = [config.base_dim * m for m in mult]
    walk.conv("decoder/post_quant", config.latent_channels, config.latent_channels, 1)
    walk.causal("decoder/conv_in", config.latent_channels, dims[0])
    walk.middle("decoder/middle", dims[0])
    up = config.temporal_downsample[::-1]
    for i, (ci, co) in enumerate(pairwise(dims)):
        ci = ci // 2 if i else ci  # the upsample before halved the channels
        for j in range(config.num_res_blocks + 1):
            walk.residual(f"decoder/level{i}/{j}", ci if j == 0 else co, co)
        if i + 1 < len(config.dim_mult):
            if up[i]:
                walk.conv(f"decoder/up{i}/time", co, 2 * co, 3, cached=2)
                walk.frames *= 2
            walk.height *= 2
            walk.width *= 2
            walk.conv(f"decoder/up{i}/space", co, co // 2, 9)
    walk.causal("decoder/conv_out", dims[-1], 3)
    return walk.layers


def taehv_encode(config: TAEHVConfig, height_px: int, width_px: int) -> list[Layer]:
    """The tiny encoder: 4 pixel frames to one latent frame."""
    walk = _Walk(FRAMES_PER_STEP, height_px, width_px)
    c = config.encoder_width
    walk.conv("encoder/conv_in", 3, c, 9)
    for i, stride in enumerate((2, 2, 1)):
        walk.frames //= stride
        walk.conv(f"encoder/pool{i}", c * stride, c, 1)
        walk.height //= 2
        walk.width //= 2
        walk.conv(f"encoder/down{i}", c, c, 9)
        _memory_blocks(walk, f"encoder/stage{i}", c)
    walk.conv("encoder/conv_out", c, config.latent_channels, 9)
    return walk.layers


def taehv_decode(config: TAEHVConfig, height_px: int, width_px: int) -> list[Layer]:
    """The tiny decoder: one latent frame to 4 pixel frames."""
    walk = _Walk(1, height_px // 8, width_px // 8)
    widths = config.decoder_widths
    walk.conv("decoder/conv_in", config.latent_channels, widths[0], 9)
    for i, stride in enumerate((1, 2, 2)):
        _memory_blocks(walk, f"decoder/stage{i}", widths[i])
        walk.height *= 2
        walk.width *= 2
        walk.conv(f"decoder/grow{i}", widths[i], widths[i] * stride, 1)
        walk.frames *= stride
        walk.conv(f"decoder/up{i}", widths[i], widths[i + 1], 9)
    walk.conv("decoder/conv_out", widths[-1], 3, 9)
    return walk.layers


def patch_encode(config: PatchCodecConfig, height_px: int, width_px: int) -> list[Layer]:
    """The linear patch encoder: one strided convolution over 4 frames of 8 x 8 px."""
    walk = _Walk(1, height_px // 8, width_px // 8)
    walk.conv("encoder/patches", 3, config.latent_channels, FRAMES_PER_STEP * 64)
    return walk.layers


def patch_decode(config: PatchCodecConfig, height_px: int, width_px: int) -> list[Layer]:
    """The patch decoder, which works at the latent's resolution throughout."""
    walk = _Walk(1, height_px // 8, width_px // 8)
    z, width, values = config.latent_channels, config.width, 3 * FRAMES_PER_STEP * 64
    walk.conv("decoder/linear", z, values, 1, cached=1)  # the previous latent
    walk.conv("decoder/input", 2 * z, width, 9)
    for i in range(config.num_blocks):
        walk.conv(f"decoder/{i}/conv1", width, width, 9)
        walk.conv(f"decoder/{i}/conv2", width, width, 9)
    walk.conv("decoder/output", width, values, 9)
    return walk.layers


def _memory_blocks(walk: _Walk, name: str, c: int) -> None:
    for j in range(3):
        walk.conv(f"{name}/{j}/conv1", 2 * c, c, 9)
        walk.conv(f"{name}/{j}/conv2", c, c, 9, cached=1)  # one past input frame per block
        walk.conv(f"{name}/{j}/conv3", c, c, 9)


def codec_layers(model: ModelConfig, stream: StreamConfig) -> tuple[list[Layer], list[Layer]]:
    """Encode and decode layers of one latent step of the model's codec."""
    h, w = stream.height_px, stream.width_px
    if model.wan_vae is not None:
        return wan_encode(model.wan_vae, h, w), wan_decode(model.wan_vae, h, w)
    if model.patch is not None:
        return patch_encode(model.patch, h, w), patch_decode(model.patch, h, w)
    assert model.taehv is not None, model.name
    return taehv_encode(model.taehv, h, w), taehv_decode(model.taehv, h, w)


def codec_work(layers: Iterable[Layer], widths: Widths = HALF) -> list[Work]:
    """One entry per layer name."""
    return merge(layer.work(widths) for layer in layers)


def cache_bytes(layers: Iterable[Layer], width: float = 2.0) -> float:
    """History kept between steps."""
    return sum(layer.cached_elements for layer in layers) * width


def flops_by_level(layers: Iterable[Layer]) -> dict[str, float]:
    """FLOPs per working resolution, e.g. ``{"480x832": ...}``."""
    out: dict[str, float] = {}
    for layer in layers:
        out[layer.level] = out.get(layer.level, 0.0) + layer.work().flops
    return out
