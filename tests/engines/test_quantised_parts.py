"""Plans of an INT8 codec and of a text encoder whose weights are stored in eight bits."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from micro import MICRO_STREAM, MICRO_WAN

from liveedit.bundle import read_manifest
from liveedit.config import from_dict
from liveedit.engines.builder import build_bundle
from liveedit.engines.gate import findings
from liveedit.engines.graph_facts import GraphFacts, read_facts
from liveedit.engines.layers import LayerTable
from liveedit.engines.onnx_files import verified_graph
from liveedit.engines.plan import BuiltPlan, read_sets
from liveedit.export.bundle_writer import write_bundle
from liveedit.export.graph_trial import Clip
from liveedit.export.part_precision import quantize_text, quantize_vae
from liveedit.export.quantize import FORMATS
from liveedit.export.sources import random_sources

pytestmark = [pytest.mark.builder, pytest.mark.slow]
pytest.importorskip("tensorrt_rtx")
INT8 = FORMATS["int8"]


def plans(root: Path, target: str, graphs: tuple[str, ...]) -> dict[str, BuiltPlan]:
    result = build_bundle(
        root, flavour="tensorrt-rtx", targets=(target,), precision="int8", graphs=graphs,
        keep=(), progress=io.StringIO(),
    )  # fmt: skip
    return dict(read_sets(read_manifest(root))[result.key].graphs)


def facts_and_table(root: Path, name: str, plan: BuiltPlan) -> tuple[GraphFacts, LayerTable]:
    manifest = read_manifest(root)
    model, _ = verified_graph(root, manifest, manifest.graphs["int8"][name])
    table = from_dict(LayerTable, json.loads((root / plan.layers).read_bytes()))
    return read_facts(model), table


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts") / "bundle"
    weights, tokenizer, _ = random_sources(MICRO_WAN, 0)
    del weights["dit"]
    write_bundle(root, MICRO_WAN, MICRO_STREAM, weights, tokenizer, precisions=("fp16",))
    rng = np.random.default_rng(0)
    shape = (9, MICRO_STREAM.height_px, MICRO_STREAM.width_px, 3)
    data = [Clip(n, rng.integers(0, 256, shape, dtype=np.uint8), "") for n in "ab"]
    quantize_vae(root, INT8, "fp16", data[:1], data[1:], min_db=0, threads=1)
    quantize_text(root, INT8, "fp16", ["turn it red"], threads=1)
    return root


@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_residual_convolutions_are_computed_in_eight_bits(quantised: Path, target: str) -> None:
    names = {"encode_next": 12, "decode_next": 20}
    built = plans(quantised, target, tuple(names))
    for name in names:
        plan = built[name]
        facts, table = facts_and_table(quantised, name, plan)
        assert len(facts.quantised_convolutions) == names[name]
        coded = [la for la in table.layers if la.cls == "conv" and la.dtype == "Int8"]
        assert {n for la in coded for n in la.onnx} >= set(facts.quantised_convolutions)
        for layer in coded:  # INT8 in, INT8 weights: nothing is widened before the product
            assert layer.inputs[0].dtype == "Int8"
            assert [t.dtype for t in layer.constants if len(t.shape) == 5][:1] == ["Int8"]
        assert not [f for f in plan.findings if "quantised" in f]
        wrong = replace(facts, quantised_convolutions=("decoder.head.2/Conv_1",))
        assert any(
            "convolution decoder.head.2/Conv_1 is not" in f
            for f in findings(wrong, table, plugins=True)
        )


def test_encoder_weights_stay_small_in_the_plan(quantised: Path) -> None:
    """Widened inside the product, and inside the look-up of the words' rows."""
    plan = plans(quantised, "sm89", ("text_encoder",))["text_encoder"]
    _, table = facts_and_table(quantised, "text_encoder", plan)
    gemms = [la for la in table.layers if la.cls == "gemm"]
    coded = {t.shape for la in gemms for t in la.constants if t.dtype == "Int8"}
    assert coded
    for layer in gemms:
        assert "Int8" not in {t.dtype for t in layer.inputs}, "products stay in high precision"
    shapes = {t.shape for la in table.layers for t in la.constants if t.dtype == "Int8"}
    text = MICRO_WAN.text
    assert any(s[-2:] == (text.vocab_size, text.dim) for s in shapes)
    assert not plan.findings
