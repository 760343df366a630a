"""The graphs of a bundle: which module, which inputs, which outputs (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from liveedit.bundle import CodecSpec, GraphSpec
from liveedit.config import ModelConfig, StreamConfig
from liveedit.export.repeat import TRACED, unrolled
from liveedit.export.trace import flat_names, specs, trace
from liveedit.models.dit import CausalWanDiT
from liveedit.models.dit_step import DiTStep, Prompt, to_precision
from liveedit.models.patch_codec import PatchCodec
from liveedit.models.taehv import TAEHV
from liveedit.models.umt5 import UMT5Encoder
from liveedit.models.wan_vae import WanVAE

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Graph:
    """How to trace one graph, and what the manifest says about it."""

    module: Callable[[torch.dtype], nn.Module]
    inputs: Callable[[torch.dtype], dict[str, Any]]
    outputs: tuple[str, ...]
    weights: str  # the weight file it shares with its siblings
    aliases: dict[str, str] = field(default_factory=dict)
    dynamic: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    blocks: int | None = None  # equal blocks in a row
    short: Callable[[], Graph] | None = None  # the same with `TRACED` blocks, if that is fewer


def aliased(names: list[str]) -> dict[str, str]:
    return {f"{name}_out": name for name in names}


class _Encode(nn.Module):
    def __init__(self, codec: Any, first: bool) -> None:
        super().__init__()
        self.codec, self.extra = codec, (first,) if isinstance(codec, WanVAE) else ()

    def forward(self, frames: Tensor, cache: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.codec.encode_step(frames, cache, *self.extra)


class _Decode(nn.Module):
    def __init__(self, codec: Any, first: bool) -> None:
        super().__init__()
        self.codec, self.extra = codec, (first,) if isinstance(codec, WanVAE) else ()

    def forward(self, latent: Tensor, cache: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.codec.decode_step(latent, cache, *self.extra)


def codec_spec(model: ModelConfig) -> CodecSpec:
    first, trim = {"wan_vae": (1, 0), "taehv": (4, 3), "patch": (4, 0)}[model.codec]
    return CodecSpec(
        encode_first_frames=first, encode_next_frames=4, decode_first_trim=trim, encode_delay=trim
    )


def dit_inputs(
    model: ModelConfig, stream: StreamConfig, dtype: torch.dtype, num_keep: int | None = None
) -> dict[str, Any]:
    """Zero inputs of `dit_step`, for tracing. ``num_keep`` None keeps every token."""
    c, length = model.dit, stream.block_seq_length
    keep = length if num_keep is None else num_keep
    grid = (stream.latent_height, stream.latent_width)
    latent = (1, c.latent_channels, stream.num_frame_per_block, *grid)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "noisy": (latent, dtype),
        "source": (latent, dtype),
        "noise": (latent, dtype),
        "timestep": ((1,), torch.float32),
        "sigma": ((1,), torch.float32),
        "sigma_next": ((1,), torch.float32),
        "rope_cos": ((1, length, c.head_dim // 2), torch.float32),
        "rope_sin": ((1, length, c.head_dim // 2), torch.float32),
        "keep_index": ((keep,), torch.int32),
        "token_row": ((length,), torch.int32),
        "write_index": ((1,), torch.int64),
        "kv_length": ((1,), torch.int32),
    }
    lists = {
        "cross_k": (1, c.num_heads, c.text_len, c.head_dim),
        "cross_v": (1, c.num_heads, c.text_len, c.head_dim),
        "k_cache": (1, c.num_heads, stream.kv_cache_length, c.head_dim),
        "v_cache": (1, c.num_heads, stream.kv_cache_length, c.head_dim),
        "attn_store": (1, length, c.dim),
    }
    inputs: dict[str, Any] = {n: torch.zeros(s, dtype=d) for n, (s, d) in shapes.items()}
    for name, shape in lists.items():
        inputs[name] = [torch.zeros(shape, dtype=dtype) for _ in range(c.num_layers)]
    return inputs


def build_dit(model: ModelConfig) -> Callable[[torch.dtype], CausalWanDiT]:
    return lambda dtype: to_precision(CausalWanDiT(model.dit), dtype)


def build_codec(model: ModelConfig, dtype: torch.dtype) -> nn.Module:
    if model.wan_vae is not None:
        return WanVAE(model.wan_vae).to(dtype)
    if model.taehv is not None:
        return TAEHV(model.taehv).to(dtype)
    assert model.patch is not None
    return PatchCodec(model.patch).to(dtype)


def _codec_step(
    step: Callable[[Any, bool], nn.Module], model: ModelConfig, first: bool, dtype: torch.dtype
) -> nn.Module:
    return step(build_codec(model, dtype), first)


def _zeros(shapes: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A tensor for each shape, a list of tensors for each list of shapes."""
    return {
        name: [torch.zeros(s, dtype=dtype) for s in shape]
        if isinstance(shape, list)
        else torch.zeros(shape, dtype=dtype)
        for name, shape in shapes.items()
    }


def _short(model: ModelConfig, stream: StreamConfig, name: str) -> Graph:
    few = replace(
        model,
        dit=replace(model.dit, num_layers=min(TRACED, model.dit.num_layers)),
        text=replace(model.text, num_layers=min(TRACED, model.text.num_layers)),
    )
    return graphs(few, stream)[name]


def graphs(model: ModelConfig, stream: StreamConfig) -> dict[str, Graph]:
    """Every graph of a bundle, by name."""
    height, width, c = stream.height_px, stream.width_px, model.dit
    dit = build_dit(model)

    with torch.device("meta"):
        codec: Any = build_codec(model, torch.float32)
    encode_caches = codec.encode_cache_shapes(height, width)
    decode_caches = codec.decode_cache_shapes(height, width)
    cache_names = {
        "encode": flat_names({"cache": encode_caches}),
        "decode": flat_names({"cache": decode_caches}),
    }
    layers = range(c.num_layers)
    state = [f"{n}_{i:02d}" for n in ("k_cache", "v_cache", "attn_store") for i in layers]
    out = {
        "dit_step": Graph(
            module=lambda dtype: DiTStep(dit(dtype)),
            inputs=lambda dtype: dit_inputs(model, stream, dtype),
            outputs=("x0", "next_latent", *(f"{n}_out" for n in state)),
            weights="dit",
            aliases=aliased(state),
            dynamic={"keep_index": ("num_keep", 2, stream.block_seq_length)},
        ),
        "prompt": Graph(
            module=lambda dtype: Prompt(dit(dtype)),
            inputs=lambda dtype: {
                "text_embeds": torch.zeros(1, c.text_len, c.text_dim, dtype=dtype)
            },
            outputs=tuple(f"cross_{kv}_{i:02d}" for kv in "kv" for i in layers),
            weights="dit",
        ),
        "text_encoder": Graph(
            module=lambda dtype: UMT5Encoder(model.text).to(dtype),
            inputs=lambda dtype: {
                "input_ids": torch.zeros(1, c.text_len, dtype=torch.int64),
                "attention_mask": torch.ones(1, c.text_len, dtype=torch.int64),
            },
            outputs=("text_embeds",),
            weights="text_encoder",
        ),
    }
    rows = {"dit_step": c.num_layers, "prompt": c.num_layers, "text_encoder": model.text.num_layers}
    for name, blocks in rows.items():
        if blocks > TRACED:
            short = partial(_short, model, stream, name)
            out[name] = replace(out[name], blocks=blocks, short=short)
    latent = (1, c.latent_channels, 1, stream.latent_height, stream.latent_width)
    for call in ("first", "next"):
        if call == "first" and model.codec != "wan_vae":
            continue  # a first call of the others differs at most in what the caller drops
        first = call == "first"
        count = 1 if first else 4
        out[f"encode_{call}"] = Graph(
            module=partial(_codec_step, _Encode, model, first),
            inputs=partial(
                _zeros, {"frames": (1, 3, count, height, width), "cache": encode_caches}
            ),
            outputs=("latent", *(f"{n}_out" for n in cache_names["encode"])),
            weights="codec",
            aliases=aliased(cache_names["encode"]),
        )
        out[f"decode_{call}"] = Graph(
            module=partial(_codec_step, _Decode, model, first),
            inputs=partial(_zeros, {"latent": latent, "cache": decode_caches}),
            outputs=("frames", *(f"{n}_out" for n in cache_names["decode"])),
            weights="codec",
            aliases=aliased(cache_names["decode"]),
        )
    return out


def _fake_parameters(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Give a module built on the meta device CPU parameters that take no memory."""
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                with mode:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                owner._parameters[name] = nn.Parameter(fake, requires_grad=False)
    return module


def trace_graph(
    graph: Graph, precision: str, weights: Mapping[str, Tensor]
) -> tuple[ir.Model, GraphSpec]:
    """Trace one graph with fake parameters, so that no second copy of the weights is made.

    Args:
        weights: checkpoint key -> tensor of any real type, asked for one at a time.

    Returns:
        The model, and its manifest entry with an empty file name.
    """
    dtype = PRECISIONS[precision]
    few = graph.short() if graph.short else graph
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        module = few.module(dtype).eval()
    module = _fake_parameters(module, mode)
    with mode:
        inputs = few.inputs(dtype)
        produced = module(**inputs)
    model = trace(module, inputs, list(few.outputs), graph.dynamic, weights, graph.blocks)
    flat = [t for p in produced for t in (p if isinstance(p, list | tuple) else [p])]
    if isinstance(produced, Tensor):
        flat = [produced]
    given = specs(inputs, {n: d[0] for n, d in graph.dynamic.items()})
    made = specs(dict(zip(few.outputs, flat, strict=True)))
    if graph.blocks is not None:
        given, made = unrolled(given, graph.blocks), unrolled(made, graph.blocks)
    return model, GraphSpec(file="", inputs=given, outputs=made, aliases=graph.aliases)
