"""Every shape in one place: networks, codec, stream. Frozen, self-checking, JSON in and out."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

from liveedit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The causal Wan diffusion transformer. Defaults are LiveEdit's (Wan2.1-T2V-1.3B)."""

    dim: int = 1536
    num_layers: int = 30
    num_heads: int = 12
    ffn_dim: int = 8960
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    latent_channels: int = 16
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise UsageError(
                f"dim {self.dim} must split into {self.num_heads} heads of an even size"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def in_channels(self) -> int:
        """Noisy latent first, source latent second."""
        return 2 * self.latent_channels


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """UMT5 encoder. Defaults are UMT5-XXL's."""

    vocab_size: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    ffn_dim: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Wan 2.1 causal 3D VAE. Space / 8, time / 4, first frame alone."""

    base_dim: int = 96
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    temporal_downsample: tuple[bool, ...] = (False, True, True)


@dataclass(frozen=True, kw_only=True)
class TAEHVConfig:
    """Tiny autoencoder (TAEHV layout). Space / 8, time / 4.

    ``pixel_convention`` says how LiveEdit's [0, 1] pixels p reach the network: ``native`` feeds p;
    ``wan`` feeds (p + 1) / 2, which is what a TAEHV distilled from the Wan VAE needs when the DiT
    saw Wan latents of [0, 1] pixels.
    """

    encoder_width: int = 64
    decoder_widths: tuple[int, ...] = (256, 128, 64, 64)
    latent_channels: int = 16
    pixel_convention: Literal["native", "wan"] = "wan"


@dataclass(frozen=True, kw_only=True)
class PatchCodecConfig:
    """Linear patch encoder and latent-grid decoder. Space / 8, time / 4, no delay."""

    width: int = 128
    num_blocks: int = 6
    latent_channels: int = 16


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks of one editor."""

    name: str
    dit: DiTConfig = field(default_factory=DiTConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    wan_vae: WanVAEConfig | None = field(default_factory=WanVAEConfig)
    taehv: TAEHVConfig | None = None
    patch: PatchCodecConfig | None = None

    def __post_init__(self) -> None:
        if [self.wan_vae, self.taehv, self.patch].count(None) != 2:
            raise UsageError(
                f"model {self.name!r} needs exactly one codec: wan_vae, taehv or patch"
            )
        if self.text.dim != self.dit.text_dim:
            raise UsageError(
                f"text encoder width {self.text.dim} differs from the DiT's text_dim "
                f"{self.dit.text_dim}"
            )

    @property
    def codec(self) -> Literal["wan_vae", "taehv", "patch"]:
        if self.wan_vae is not None:
            return "wan_vae"
        return "taehv" if self.taehv is not None else "patch"


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """What a bundle's graphs are specialised on. Change a field, export again."""

    height_px: int = 480
    width_px: int = 832
    num_frame_per_block: int = 3  # latent frames per chunk
    local_attn_size: int = 21  # latent frames that attention sees: sink, past and current chunk
    sink_size: int = 0  # latent frames kept for ever at the front
    denoising_step_list: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    warp_denoising_step: bool = False  # True: the list is first mapped through the shifted table
    timestep_shift: float = 5.0
    keep_bucket: int = 128  # kept-token counts are rounded up to a multiple of this

    def __post_init__(self) -> None:
        if self.height_px % 16 or self.width_px % 16 or min(self.height_px, self.width_px) < 16:
            raise UsageError(
                "height_px and width_px must be positive multiples of 16, "
                f"got {self.height_px} x {self.width_px}"
            )
        block = self.num_frame_per_block
        if block < 1:
            raise UsageError(f"num_frame_per_block must be at least 1, got {block}")
        if self.local_attn_size % block or self.sink_size % block:
            raise UsageError(
                f"local_attn_size {self.local_attn_size} and sink_size {self.sink_size} must be "
                f"multiples of num_frame_per_block {block}"
            )
        if not 0 <= self.sink_size <= self.local_attn_size - block:
            raise UsageError(
                f"sink_size {self.sink_size} must leave room for the current block of {block} in "
                f"local_attn_size {self.local_attn_size}"
            )
        if not self.denoising_step_list:
            raise UsageError("denoising_step_list is empty")
        if self.keep_bucket < 1:
            raise UsageError(f"keep_bucket must be at least 1, got {self.keep_bucket}")

    @property
    def latent_height(self) -> int:
        return self.height_px // 8

    @property
    def latent_width(self) -> int:
        return self.width_px // 8

    @property
    def frame_seq_length(self) -> int:
        """Tokens per latent frame. 480 x 832 gives 30 * 52 = 1560."""
        return (self.height_px // 16) * (self.width_px // 16)

    @property
    def block_seq_length(self) -> int:
        """Tokens per chunk. 480 x 832 with 3 latent frames gives 4680."""
        return self.num_frame_per_block * self.frame_seq_length

    @property
    def kv_cache_length(self) -> int:
        """Tokens per KV buffer, static. The current chunk is always at the end of the prefix."""
        return self.local_attn_size * self.frame_seq_length


LIVEEDIT_1_3B = ModelConfig(name="liveedit-1.3b")
TINY = ModelConfig(
    name="tiny",
    dit=DiTConfig(
        dim=192, num_layers=6, num_heads=3, ffn_dim=768, freq_dim=128, text_dim=128, text_len=32
    ),
    text=TextEncoderConfig(
        vocab_size=1024, dim=128, dim_attn=128, ffn_dim=256, num_heads=4, num_layers=2
    ),
    wan_vae=None,
    patch=PatchCodecConfig(),
)
TINY_STREAM = StreamConfig(
    height_px=128, width_px=224, local_attn_size=12, sink_size=3, keep_bucket=16
)
MODELS: dict[str, tuple[ModelConfig, StreamConfig]] = {
    "liveedit-1.3b": (LIVEEDIT_1_3B, StreamConfig()),
    "tiny": (TINY, TINY_STREAM),
}


def named_config(name: str) -> tuple[ModelConfig, StreamConfig]:
    """The networks and the default stream of a named configuration.

    Raises:
        UsageError: no configuration has that name.
    """
    if name not in MODELS:
        raise UsageError(f"no configuration {name!r}; there are {', '.join(sorted(MODELS))}")
    return MODELS[name]


T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON data; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Rebuild a dataclass from plain JSON data. Every key must be known and of the right type.

    Raises:
        UsageError: unknown or missing key, wrong type, or a value the class itself refuses.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected an object, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(fields)}")
    missing = [
        n
        for n, f in fields.items()
        if n not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{where}: missing key {missing[0]!r}")
    hints = _hints(cls)  # type: ignore[arg-type]
    return cls(**{k: _typed(hints[k], v, f"{where}.{k}") for k, v in data.items()})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)  # evaluates every annotation anew


def _typed(hint: Any, value: Any, where: str) -> Any:
    import types
    import typing

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        *others, last = (a for a in args if a is not type(None))
        for other in others:
            try:
                return _typed(other, value, where)
            except UsageError:
                continue
        return _typed(last, value, where)
    if origin is Literal:
        if value not in args:
            raise UsageError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple or origin is list:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, got {type(value).__name__}")
        items = [_typed(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected an object, got {type(value).__name__}")
        return {str(k): _typed(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UsageError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
