"""Two blocks of the official width: calibrated, quantised, built, and found in the plan."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from micro import MICRO

from liveedit.bundle import read_manifest
from liveedit.config import LIVEEDIT_1_3B, ModelConfig, StreamConfig, from_dict
from liveedit.engines.builder import build_bundle
from liveedit.engines.layers import LayerTable
from liveedit.engines.plan import read_sets
from liveedit.export.blockwise import calibrate_blocks
from liveedit.export.bundle_writer import write_bundle
from liveedit.export.graph_trial import Clip, load_step
from liveedit.export.linears import linears
from liveedit.export.quantize import FORMATS, SiteScale
from liveedit.export.quantized_bundle import Report, write_precision
from liveedit.export.sources import random_sources
from liveedit.export.verdict import Limits, Verdict
from liveedit.export.weights import weight_bytes

INT8 = FORMATS["int8"]
MODEL = ModelConfig(
    name="two-blocks",
    dit=replace(LIVEEDIT_1_3B.dit, num_layers=2, text_dim=32, text_len=16),
    text=MICRO.text,
    wan_vae=None,
    taehv=MICRO.taehv,
)
STREAM = StreamConfig(
    height_px=48, width_px=64, local_attn_size=3, denoising_step_list=(1000.0, 750.0, 250.0),
    keep_bucket=4,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.builder
def test_two_full_width_blocks_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    root = tmp_path / "bundle"
    weights, tokenizer, _ = random_sources(MODEL, 0)
    write_bundle(root, MODEL, STREAM, weights, tokenizer, precisions=("fp16",))
    manifest = read_manifest(root)
    small = np.random.default_rng(0).integers(0, 256, (24, 6, 8, 3), dtype=np.uint8)
    clip = Clip("noise", small.repeat(8, 1).repeat(8, 2), "turn it red")
    statistics = calibrate_blocks(root, manifest, "fp16", [clip], threads=1)
    assert statistics.origin.passes == 2 * 3 * 4
    model = load_step(root, manifest, "fp16")
    found = linears(model)
    layers = tuple(n for n in found if not n.endswith("ffn.2"))
    scales = {
        t: SiteScale(float(known.amax.max()) / INT8.largest)
        for t, known in statistics.tensors.items()
    }
    report = Report(
        format="int8", base="fp16", layers=layers, left_out=("blocks.0.ffn.2", "blocks.1.ffn.2"),
        scales={}, sensitivity=(), verdict=Verdict(limits=Limits(), quality=()), calibration={},
    )  # fmt: skip
    write_precision(root, INT8, scales, report)
    coded = load_step(root, read_manifest(root), "int8")
    sizes = {n: v.const_value.nbytes for n, v in coded.graph.initializers.items() if v.const_value}
    before = sum(found[n].weight.const_value.nbytes for n in layers if found[n].weight.const_value)
    after = sum(b for n, b in sizes.items() if n.endswith((".weight.T.int8", ".weight.T.scale")))
    assert after == pytest.approx(before / 2, rel=0.005)
    assert weight_bytes(coded) == pytest.approx(weight_bytes(model) - before / 2, rel=0.005)
    result = build_bundle(
        root, flavour="tensorrt-rtx", targets=("sm89",), precision="int8", graphs=("dit_step",),
        keep=(), progress=io.StringIO(),
    )  # fmt: skip
    plan = read_sets(read_manifest(root))[result.key].graphs["dit_step"]
    table = from_dict(LayerTable, json.loads((root / plan.layers).read_bytes()))
    products = [la for la in table.layers if la.cls == "gemm"]
    types = {
        node.rsplit("/", 1)[0]: layer.dtype
        for layer in products
        for node in layer.onnx
        if "/MatMul_" in node and node.startswith("blocks.")
    }
    assert {n for n, t in types.items() if t == "Int8"} == set(layers)
    assert {t for n, t in types.items() if n.endswith("ffn.2")} == {"Half"}
    coded_products = [la for la in products if la.dtype == "Int8"]
    assert len(coded_products) == 2 * 5  # q, k and v together
    for layer in coded_products:  # INT8 x INT8: neither side was widened before
        assert layer.inputs[0].dtype == "Int8" or "Int8" in {t.dtype for t in layer.inputs}
        assert [t.dtype for t in layer.constants if len(t.shape) > 1][:1] == ["Int8"]
    assert not [f for f in plan.findings if "quantised" in f]
    assert plan.weights_bytes == pytest.approx(weight_bytes(coded), rel=0.02)
