from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from engine_bundles import write_bundle
from engine_graphs import step_model

from liveedit.config import from_dict, named_config
from liveedit.engines import builder
from liveedit.engines.builder import build_bundle
from liveedit.engines.gate import Limits, findings, step_activation_bound
from liveedit.engines.graph_facts import AttentionFact, GraphFacts, read_facts
from liveedit.engines.layers import Layer, LayerTable, parse_layers, precision_by_class
from liveedit.errors import BackendError

FP16_LINE = (
    "Name: MatMul_9 [profile 1]_U11+MatMul_7 [profile 1]_U15_myl1_8, LayerType: gemm, Inputs: [ "
    "{ Name: __mye12_myl1, Dimensions: [1,96,128], Strides: [12288,128,1], StrideOrder: [2,1,0], "
    "Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: c_myl1, "
    "Dimensions: [1,128,384], Strides: [49152,384,1], StrideOrder: [2,1,0], Datatype: Half, "
    "Format: (Linear) Row major linear format }], Outputs: [ { Name: __mye13_myl1, Dimensions: "
    "[1,96,384], Strides: [36864,384,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) "
    "Row major linear format }], TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: MatMul_9]"
    "[ONNX Layer: MatMul_7]"
)
SIBLING = FP16_LINE.replace(" [profile 1]", "").replace("MatMul_9_", "Other_")
SIGNAL = (
    "Name: __mye15_myl0_9, LayerType: signal, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: , StreamId: 0, EventId: 2, Metadata: "
)
CAST_LINE = FP16_LINE.replace("MatMul_9 [profile 1]_U11+MatMul_7 [profile 1]_U15", "__myl_Cast")


def built(
    root: Path, model: onnx.ModelProto, target: str = "sm89"
) -> tuple[GraphFacts, LayerTable]:
    """Facts and layer table of a plan that was really built."""
    write_bundle(root, {"dit_step": model})
    result = build_bundle(
        root, flavour="tensorrt-rtx", targets=(target,), keep=(0.3,), progress=io.StringIO()
    )
    text = (root / "engines" / result.key / "dit_step.layers.json").read_bytes()
    return read_facts(model), from_dict(LayerTable, json.loads(text))


def test_a_line_of_the_table_is_read_whole() -> None:
    (layer,) = parse_layers(["Layers:", FP16_LINE, SIGNAL, "I/O Tensors:"])
    assert (layer.cls, layer.profile, layer.dtype) == ("gemm", 1, "Half")
    assert layer.onnx == ("MatMul_9", "MatMul_7")
    assert [t.shape for t in layer.inputs] == [(1, 96, 128)]
    assert layer.outputs[0].bytes == 96 * 384 * 2


def test_layers_of_one_subgraph_share_its_profile() -> None:
    layers = parse_layers([FP16_LINE, SIBLING])
    assert [layer.profile for layer in layers] == [1, 1]
    assert precision_by_class(layers) == {"gemm": {"Half": 2}}


@pytest.mark.parametrize(
    ("line", "cls"),
    [
        (FP16_LINE, "gemm"),
        (FP16_LINE.replace("MatMul_9 [profile 1]_U11+MatMul_7 ", "_gemm_mha_v2 "), "attention"),
        (FP16_LINE.replace("LayerType: gemm", "LayerType: custom_layer"), "plugin"),
        (CAST_LINE.replace("LayerType: gemm", "LayerType: kgen"), "reformat"),
        (CAST_LINE.replace("myl_Cast", "myl_CastAdd").replace("gemm", "kgen"), "pointwise"),
        (FP16_LINE.replace("LayerType: gemm", "LayerType: correlation"), "conv"),
        (FP16_LINE.replace("LayerType: gemm", "LayerType: NoOp"), "reformat"),
        (CAST_LINE.replace("myl_Cast", "myl_FcAdd").replace("gemm", "runtime_fusion"), "gemm"),
    ],
)
def test_layers_are_classified(line: str, cls: str) -> None:
    assert parse_layers([line])[0].cls == cls


@pytest.mark.builder
@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_a_sound_graph_passes(tmp_path: Path, target: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    facts, table = built(tmp_path, step_model(), target)
    assert len(facts.attentions) == 2
    assert all(len(a.projections[0]) == 3 for a in facts.attentions)
    assert {layer.profile for layer in table.layers} == {0, 1}
    assert findings(facts, table, plugins=False) == []


@pytest.mark.builder
def test_lengths_that_the_parser_drops_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = step_model(drop_lengths=True)
    with pytest.raises(BackendError, match=r"ignores an operand of the graph.*kv_length"):
        built(tmp_path, model)
    monkeypatch.setattr(builder, "dropped_operands", lambda _: [])
    found = findings(*built(tmp_path, model), plugins=False)
    assert any("operand is dropped" in line and "kv_length" in line for line in found)
    assert sum("does not read its KV length 'kv_length'" in line for line in found) == 4


@pytest.mark.builder
def test_a_lost_fp32_island_is_found(tmp_path: Path) -> None:
    """The builder computes a FP32 product between two casts in FP16, weights included."""
    pytest.importorskip("tensorrt_rtx")
    facts, table = built(tmp_path, step_model(float_linear=True))
    assert len(facts.float_linears) == 2
    found = findings(facts, table, plugins=False)
    assert sum("FP32 linear" in line and "is computed in Half" in line for line in found) == 4


def layer(name: str, *onnx_nodes: str, dtype: str = "Half", rows: int = 96) -> Layer:
    line = FP16_LINE.replace("MatMul_9 [profile 1]_U11+MatMul_7 [profile 1]_U15_myl1_8", name)
    line = line.replace("Datatype: Half", f"Datatype: {dtype}").replace("[1,96,", f"[1,{rows},")
    return replace(
        parse_layers([line])[0],
        onnx=onnx_nodes,
        profile=0,
    )


def table_of(*layers: Layer, weights: int = 10**7) -> LayerTable:
    return LayerTable(layers=layers, weights_bytes=weights, activation_bytes=(5000,), warnings=())


FACTS = GraphFacts(
    attentions=(AttentionFact(node="attend", lengths=None, projections=(("q", "k", "v"),)),),
    softmaxes=(),
    plugins={"MaskCacheGather": ("gather_0",)},
    quantised_linears=("up",),
    float_linears=("time",),
    caches=(),
    weights_bytes=10**7,
)
GOOD = (
    layer("_gemm_mha_v2_myl0_1", "attend"),
    layer("qkv_myl0_0", "q", "k", "v"),
    layer("up_myl0_2", "up", dtype="Int8"),
    layer("time_myl0_3", "time", dtype="Float", rows=1),
    replace(layer("gather_0"), cls="plugin"),
)


COPY = replace(layer("__myl_Cast_myl0_7"), cls="reformat")
WIDENED = replace(COPY, outputs=(replace(COPY.outputs[0], dtype="Float"),))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (GOOD[1:], "0 fused attention kernels for 1"),
        ((*GOOD, layer("_gemm_mha_v2_myl0_9", "attend")), "is in 2 fused kernels"),
        ((GOOD[0], *GOOD[2:], layer("q_myl0_0", "q"), layer("kv", "k", "v")), "q, k, v of attend"),
        ((*GOOD[:2], layer("up_myl0_2", "up"), *GOOD[3:]), "up has no Int8 or FP8"),
        ((*GOOD[:3], GOOD[4], layer("time_myl0_3", "time")), "time is computed in Half"),
        ((*GOOD, layer("wide_myl0_4", dtype="Float")), "96 rows in FP32"),
        (GOOD[:4], "gather_0 is in 0 plugin layers"),
        ((*GOOD, *[WIDENED] * 2), "2 standalone casts"),
    ],
)
def test_each_broken_promise_is_found(layers: tuple[Layer, ...], sentence: str) -> None:
    found = findings(FACTS, table_of(*layers), plugins=True)
    assert [line for line in found if sentence in line], found


def test_a_cast_that_keeps_the_type_is_a_copy() -> None:
    assert findings(FACTS, table_of(*GOOD, COPY, COPY), plugins=True) == []


def test_a_plan_that_keeps_every_promise_has_no_findings() -> None:
    assert findings(FACTS, table_of(*GOOD), plugins=True) == []


def test_the_activation_bound_of_a_step_by_hand() -> None:
    """480 x 832: 2 caches of 32,760 rows, 6 tensors of 4680 tokens, 16 MiB; all of width 1536."""
    model, stream = named_config("liveedit-1.3b")
    bound = step_activation_bound(model.dit, stream)
    assert bound == 2 * 1536 * (2 * 32760 + 6 * 4680) + 2**24
    assert 275_719_168 < bound < 1.12 * 275_719_168  # what TensorRT-RTX 1.7.1 reports


def test_memory_beyond_the_prediction_is_found() -> None:
    limits = Limits(activation_bytes=4999)
    (found,) = findings(FACTS, table_of(*GOOD), plugins=True, limits=limits)
    assert found == "activations take 5000 bytes, predicted 4999"
    (found,) = findings(FACTS, table_of(*GOOD, weights=12 * 10**6), plugins=True)
    assert "holds 12000000 bytes of weights" in found
