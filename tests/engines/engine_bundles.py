"""Bundles of stand-in graphs, written as the exporter writes one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from engine_graphs import save

from liveedit.bundle import (
    CodecSpec,
    GraphSpec,
    Manifest,
    TensorSpec,
    file_entries,
    read_manifest,
    write_manifest,
)
from liveedit.config import StreamConfig, named_config
from liveedit.engines.fuzz import add_stand_in
from liveedit.engines.plan import BuildInputs, PlanSet, here

STREAM = StreamConfig(
    height_px=64,
    width_px=128,
    local_attn_size=12,
    keep_bucket=8,
)  # 96 tokens a chunk, 384 cached
DTYPES = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
}


def specs_of(values: list[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=v.name,
            dtype=DTYPES[v.type.tensor_type.elem_type],  # type: ignore[arg-type]
            shape=tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
        )
        for v in values
    )


def write_bundle(root: Path, models: dict[str, onnx.ModelProto]) -> Path:
    """A bundle that holds stand-in graphs, written as the exporter writes one."""
    model, _ = named_config("tiny")
    graphs, paths = {}, ["tokenizer.json"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "tokenizer.json").write_text("{}")
    for name, proto in models.items():
        file = f"fp16/{name}.onnx"
        graphs[name] = GraphSpec(
            file=file,
            inputs=specs_of(list(proto.graph.input)),
            outputs=specs_of(list(proto.graph.output)),
            aliases={
                v.name: v.name.removesuffix("_out")
                for v in proto.graph.output
                if v.name.endswith("_out")
            },
        )
        save(proto, root / file)
        paths += [file, f"{file}.data"]
    manifest = Manifest(
        written_by={"liveedit": "test"},
        model=model,
        stream=STREAM,
        codec=CodecSpec(
            encode_first_frames=4, encode_next_frames=4, decode_first_trim=3, encode_delay=0
        ),
        graphs={"fp16": graphs},
        files=file_entries(root, paths),
    )
    write_manifest(root, manifest)
    return root


TABLE = b'{"layers": [], "weights_bytes": 1, "activation_bytes": [1], "warnings": []}'


def with_plan(root: Path, **changes: Any) -> tuple[Manifest, PlanSet]:
    """The stand-in bundle with a plan that nobody built: its bytes never reach TensorRT."""
    manifest = read_manifest(root)
    inputs = BuildInputs(
        flavour="tensorrt-rtx",
        version="1.7.1.116",
        platform=here(),
        targets=("sm86", "sm89"),
        precision="fp16",
        onnx={
            f: manifest.files[f].sha256 for f in ("fp16/dit_step.onnx", "fp16/dit_step.onnx.data")
        },
        plugins=None,
        profiles=(96, 32),
    )
    return add_stand_in(root, replace(inputs, **changes), plan=b"plan" * 100, layers=TABLE)
