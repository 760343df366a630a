"""FLOPs of graphs: against numbers by hand, and against the accounting."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from liveedit.bundle import Manifest, read_manifest
from liveedit.errors import UsageError
from liveedit.export.functions import add_functions
from liveedit.profiling.accounting import (
    Work,
    dit_pass,
    prompt_graph,
    text_encoder,
    total_flops,
)
from liveedit.profiling.codec_accounting import codec_layers, codec_work
from liveedit.profiling.onnx_flops import by_class, count


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def attention_model() -> onnx.ModelProto:
    """One q projection on ``num_keep`` rows, attention over a cache of 40 with a length."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 8], [0.0] * 64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="blocks.3.self_attn.q/MatMul_0"),
        helper.make_node("Reshape", ["p", "shape"], ["r"], name="blocks.3.self_attn/Reshape_1"),
        helper.make_node("Transpose", ["r"], ["q"], perm=[0, 2, 1, 3]),
        helper.make_node(
            "TRT_Attention",
            ["q", "k", "v", "", "", "length"],
            ["y"],
            domain="liveedit",
            name="blocks.3.self_attn/TRT_Attention_2",
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            value("x", 1, "num_keep", 8),
            value("k", 1, 2, 40, 4),
            value("v", 1, 2, 40, 4),
            helper.make_tensor_value_info("length", TensorProto.INT32, [1]),
        ],
        [value("y", 1, 2, "num_keep", 4)],
        [weight, helper.make_tensor("shape", TensorProto.INT64, [4], [1, -1, 2, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    add_functions(model, ["TRT_Attention"])
    return model


def test_function_bodies_and_kv_length() -> None:
    nodes = count(attention_model(), dims={"num_keep": 6}, kv_length=30)
    assert by_class(nodes) == {"qkvo": 2 * 6 * 8 * 8, "self_attention": 4 * 6 * 30 * 8}
    assert [n.layer.block for n in nodes] == [3, 3]
    assert nodes[0].layer.text == "block 3 / self-attention / q"
    assert nodes[0].bytes == 4 * (6 * 8 + 64 + 6 * 8)
    full = by_class(count(attention_model(), dims={"num_keep": 6}))
    assert full["self_attention"] == 4 * 6 * 40 * 8


def test_bad_input() -> None:
    with pytest.raises(UsageError, match=r"dynamic dimension 'num_keep'"):
        count(attention_model())
    with pytest.raises(UsageError, match=r"kv_length 41 is not in 1\.\.40"):
        count(attention_model(), dims={"num_keep": 6}, kv_length=41)
    graph = helper.make_graph(
        [helper.make_node("Einsum", ["a", "a"], ["b"], equation="ij,ij->i", name="e")],
        "g",
        [value("a", 2, 2)],
        [value("b", 2)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    with pytest.raises(UsageError, match="'e' is Einsum"):
        count(model)


def test_convolutions() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[0, 0, 1, 1], name="c"),
        helper.make_node("ConvTranspose", ["a", "t"], ["y"], strides=[2, 2], name="d"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", 1, 4, 8, 8)],
        [value("y", 1, 2, 8, 8)],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [6, 4, 3, 3], [0.0] * 216),
            helper.make_tensor("t", TensorProto.FLOAT, [6, 2, 2, 2], [0.0] * 48),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    flops = [n.flops for n in count(model)]
    assert flops == [2 * 6 * 16 * 36, 2 * 6 * 16 * 8]


def graph_flops(root: Path, manifest: Manifest, name: str, **options: object) -> dict[str, float]:
    precision = "fp16" if "fp16" in manifest.graphs else "fp32"
    return by_class(count(root / manifest.graphs[precision][name].file, **options))


def assert_within_one_percent(counted: dict[str, float], expected: list[Work]) -> None:
    """Every class that multiplies, one by one."""
    formula = {w.name: w.flops for w in expected if w.flops}
    assert set(counted) == set(formula)
    for name, flops in formula.items():
        assert counted[name] == pytest.approx(flops, rel=0.01), name


@pytest.mark.parametrize("kept", [72, 24, 4])
def test_exported_dit_step(micro_bundle: Path, kept: int) -> None:
    manifest = read_manifest(micro_bundle)
    stream = manifest.stream
    tokens, capacity = stream.block_seq_length, stream.kv_cache_length
    kept = min(kept, tokens)  # the first case is a full pass
    seen = capacity - tokens + kept
    counted = graph_flops(
        micro_bundle, manifest, "dit_step", dims={"num_keep": kept}, kv_length=seen
    )
    expected = dit_pass(
        manifest.model.dit,
        tokens=tokens,
        keys=capacity,
        kept=kept if kept < tokens else None,
    )
    assert_within_one_percent(counted, expected)


def test_exported_prompt_and_text_encoder(micro_bundle: Path) -> None:
    manifest = read_manifest(micro_bundle)
    model = manifest.model
    prompt = graph_flops(micro_bundle, manifest, "prompt")
    assert sum(prompt.values()) == pytest.approx(prompt_graph(model.dit).flops, rel=0.01)
    text = graph_flops(micro_bundle, manifest, "text_encoder")
    expected = text_encoder(model.text, model.dit.text_len).flops
    assert sum(text.values()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("fixture", ["micro_bundle", "micro_wan_bundle"])
def test_exported_codecs(fixture: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(fixture)
    manifest = read_manifest(root)
    for name, layers in zip(
        ("encode_next", "decode_next"),
        codec_layers(manifest.model, manifest.stream),
        strict=True,
    ):
        counted = graph_flops(root, manifest, name)
        assert sum(counted.values()) == pytest.approx(total_flops(codec_work(layers)), rel=0.01), (
            name
        )
