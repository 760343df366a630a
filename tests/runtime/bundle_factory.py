"""Manifests after the graph contract, for streams of any shape, without graphs behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from liveedit.bundle import (
    CodecSpec,
    DType,
    GraphSpec,
    Manifest,
    TensorSpec,
    file_entries,
    write_manifest,
)
from liveedit.config import (
    DiTConfig,
    ModelConfig,
    StreamConfig,
    TAEHVConfig,
    TextEncoderConfig,
    WanVAEConfig,
)

Codec = Literal["wan_vae", "taehv"]
CODECS: dict[Codec, CodecSpec] = {
    "wan_vae": CodecSpec(
        encode_first_frames=1, encode_next_frames=4, decode_first_trim=0, encode_delay=0
    ),
    "taehv": CodecSpec(
        encode_first_frames=4, encode_next_frames=4, decode_first_trim=3, encode_delay=3
    ),
}
WORDS = ("<pad>", "</s>", "<unk>", "make", "the", "car", "red", "blue", "&")


def micro_stream(**changes: object) -> StreamConfig:
    """3 latent frames of 2 x 3 tokens, a window of 4 chunks with one of sink."""
    fields = {
        "height_px": 32,
        "width_px": 48,
        "local_attn_size": 12,
        "sink_size": 3,
        "keep_bucket": 4,
    }
    return StreamConfig(**{**fields, **changes})  # type: ignore[arg-type]


def micro_model(codec: Codec) -> ModelConfig:
    return ModelConfig(
        name="micro",
        dit=DiTConfig(
            dim=24, num_layers=2, num_heads=2, ffn_dim=32, freq_dim=16, text_dim=8, text_len=6
        ),
        text=TextEncoderConfig(
            vocab_size=16, dim=8, dim_attn=8, ffn_dim=16, num_heads=2, num_layers=1
        ),
        wan_vae=WanVAEConfig() if codec == "wan_vae" else None,
        taehv=TAEHVConfig() if codec == "taehv" else None,
    )


def dit_step_spec(model: ModelConfig, stream: StreamConfig, real: DType = "float32") -> GraphSpec:
    dit, L = model.dit, stream.block_seq_length
    F, h, w = stream.num_frame_per_block, stream.latent_height, stream.latent_width
    latent = (1, 16, F, h, w)
    kv = (1, dit.num_heads, stream.kv_cache_length, dit.head_dim)
    cross = (1, dit.num_heads, dit.text_len, dit.head_dim)

    def spec(name: str, dtype: DType, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    inputs = [spec(n, real, *latent) for n in ("noisy", "source", "noise")]
    inputs += [spec(n, "float32", 1) for n in ("timestep", "sigma", "sigma_next")]
    inputs += [spec(n, "float32", 1, L, dit.head_dim // 2) for n in ("rope_cos", "rope_sin")]
    inputs += [
        spec("keep_index", "int32", "num_keep"),
        spec("token_row", "int32", L),
        spec("write_index", "int64", 1),
        spec("kv_length", "int32", 1),
    ]
    outputs = [spec("x0", real, *latent), spec("next_latent", real, *latent)]
    aliases = {}
    for i in range(dit.num_layers):
        inputs += [spec(f"cross_{x}_{i:02}", real, *cross) for x in "kv"]
        state = [spec(f"{x}_cache_{i:02}", real, *kv) for x in "kv"]
        state.append(spec(f"attn_store_{i:02}", real, 1, L, dit.dim))
        inputs += state
        outputs += [spec(f"{t.name}_out", real, *t.shape) for t in state]
        aliases |= {f"{t.name}_out": t.name for t in state}
    return GraphSpec(
        file="fp32/dit_step.onnx",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        aliases=aliases,
    )


def text_specs(model: ModelConfig, real: DType = "float32") -> dict[str, GraphSpec]:
    dit = model.dit
    ids = (1, dit.text_len)
    embeds = TensorSpec(name="text_embeds", dtype=real, shape=(1, dit.text_len, dit.text_dim))
    cross = (1, dit.num_heads, dit.text_len, dit.head_dim)
    return {
        "text_encoder": GraphSpec(
            file="fp32/text_encoder.onnx",
            inputs=tuple(
                TensorSpec(name=n, dtype="int64", shape=ids)
                for n in ("input_ids", "attention_mask")
            ),
            outputs=(embeds,),
        ),
        "prompt": GraphSpec(
            file="fp32/prompt.onnx",
            inputs=(embeds,),
            outputs=tuple(
                TensorSpec(name=f"cross_{x}_{i:02}", dtype=real, shape=cross)
                for i in range(dit.num_layers)
                for x in "kv"
            ),
        ),
    }


def codec_specs(
    codec: Codec, stream: StreamConfig, real: DType = "float32"
) -> dict[str, GraphSpec]:
    """Step graphs with one cache each: the last latent, or the last frame."""
    H, W = stream.height_px, stream.width_px
    latent = TensorSpec(
        name="latent", dtype=real, shape=(1, 16, 1, stream.latent_height, stream.latent_width)
    )

    def graph(name: str, count: int) -> GraphSpec:
        frames = TensorSpec(name="frames", dtype=real, shape=(1, 3, count, H, W))
        encode = name.startswith("encode")
        shape = (1, 3, 1, H, W) if encode else latent.shape
        cache = TensorSpec(name="cache_00", dtype=real, shape=shape)
        return GraphSpec(
            file=f"fp32/{name}.onnx",
            inputs=(frames if encode else latent, cache),
            outputs=(
                latent if encode else frames,
                TensorSpec(name="cache_00_out", dtype=real, shape=shape),
            ),
            aliases={"cache_00_out": "cache_00"},
        )

    counts = {"encode_next": 4, "decode_next": 4}
    if codec == "wan_vae":
        counts |= {"encode_first": 1, "decode_first": 1}
    return {name: graph(name, count) for name, count in counts.items()}


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path))


def make_manifest(
    root: Path, *, codec: Codec = "taehv", stream: StreamConfig | None = None
) -> Manifest:
    """Write a tokenizer and a manifest to ``root``; the graphs' files are not made."""
    model, stream = micro_model(codec), stream or micro_stream()
    root.mkdir(parents=True, exist_ok=True)
    write_tokenizer(root / "tokenizer.json")
    graphs = {
        "dit_step": dit_step_spec(model, stream),
        **text_specs(model),
        **codec_specs(codec, stream),
    }
    manifest = Manifest(
        written_by={"test": "1"},
        model=model,
        stream=stream,
        codec=CODECS[codec],
        graphs={"fp32": graphs},
        files=file_entries(root, ["tokenizer.json"]),
    )
    write_manifest(root, manifest)
    return manifest
