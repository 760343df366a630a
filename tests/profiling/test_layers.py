"""Layers under our names, against their FLOPs and bytes."""

import json
from pathlib import Path

import pytest

from liveedit.cli import main
from liveedit.config import to_dict
from liveedit.engines.layers import Layer, LayerTable, LayerTensor
from liveedit.errors import UsageError
from liveedit.profiling.layer_names import parse_layer
from liveedit.profiling.layer_table import LayerTime, fix_first, group, place_nodes, text
from liveedit.profiling.onnx_flops import NodeFlops
from liveedit.profiling.ort_profile import NodeTime, read_profile
from liveedit.profiling.plan_layers import (
    plan_rows,
    plan_text,
    plan_times,
    read_layers,
    read_times,
)


@pytest.mark.parametrize(
    ("name", "words", "accounting"),
    [
        ("blocks.7.self_attn.q/MatMul_93", "block 7 / self-attention / q", "qkvo"),
        ("blocks.7/TRT_Attention_99", "block 7 / self-attention / attention", "self_attention"),
        ("blocks.7/Attention_9", "block 7 / cross-attention / attention", "cross_attention"),
        ("blocks.12.cross_attn.o/Gemm_4", "block 12 / cross-attention / o", "cross_projection"),
        ("blocks.0.ffn.2/MatMul_5/MatMulAddFusion", "block 0 / FFN down", "ffn"),
        ("blocks.3/MaskCacheGather_1", "block 3 / self-attention / gather", "gather_scatter"),
        ("blocks.3/TensorScatter_1", "block 3 / self-attention / KV write", "copy"),
        ("blocks.3/Mul_2", "block 3 / modulation and residual", "pointwise"),
        ("head.head/MatMul_412", "head / head", "embedding"),
        ("patch_embedding/Conv_1", "patch_embedding", "embedding"),
        ("decoder.0.conv/Conv_1", "decoder / 0.conv", "convolution"),
        # A fused layer belongs to the part that multiplies.
        (
            "blocks.2/Mul_1 + blocks.2.ffn.0/MatMul_2 + blocks.2.ffn.1/Gelu_3",
            "block 2 / FFN up",
            "ffn",
        ),
    ],
)
def test_names(name: str, words: str, accounting: str) -> None:
    got = parse_layer(name)
    assert (got.text, got.accounting) == (words, accounting)


def test_inlined_nodes_take_the_block_they_run_in() -> None:
    nodes = [
        NodeTime(node="blocks.4.self_attn.v/MatMul_1", operator="MatMul", ms=(1.0,)),
        NodeTime(node="Attention_502", operator="Attention", ms=(2.0,)),
        NodeTime(node="Where_577", operator="Where", ms=(0.5,)),
        NodeTime(node="gemm_input_reshape", operator="Reshape", ms=(0.1,)),
    ]
    words = [t.layer.text for t in place_nodes(nodes)]
    assert words == [
        "block 4 / self-attention / v",
        "block 4 / self-attention / attention",
        "block 4 / self-attention / gather, scatter",
        "block 4 / reshapes",
    ]


def test_rows_are_held_against_the_roofline() -> None:
    q, up = parse_layer("blocks.0.self_attn.q/MatMul_0"), parse_layer("blocks.0.ffn.0/MatMul_1")
    times = [
        LayerTime(layer=q, ms=4.0, bytes=1e6),
        LayerTime(layer=up, ms=2.0, bytes=30e6),
    ]
    flops = [
        NodeFlops(node="", operator="MatMul", layer=q, flops=2e8, bytes=0),
        NodeFlops(node="", operator="MatMul", layer=up, flops=1e8, bytes=0),
    ]
    first, second = group(times, flops, by="layer", peak_gflops=100, bandwidth_gbps=20)
    assert first.name == "block 0 / self-attention / q"
    assert first.gflops == pytest.approx(50)
    assert first.bound_ms == pytest.approx(2.0)  # arithmetic
    assert second.bound_ms == pytest.approx(1.5)  # memory
    assert second.gbps == pytest.approx(15)
    (line, _) = fix_first([first, second], 2)
    assert line.startswith("block 0 / self-attention / q: 2.000 ms (33% of the pass)")
    assert "50%" in text([first, second])
    merged = group(times, flops, by="block", peak_gflops=100, bandwidth_gbps=20)
    assert [(r.name, r.count, r.ms) for r in merged] == [("block 0", 2, 6.0)]


def test_profile_events() -> None:
    def event(name: str, dur: int) -> dict[str, object]:
        args = {"op_name": "MatMul", "output_size": "40", "parameter_size": "8"}
        return {"cat": "Node", "name": name, "dur": dur, "args": args}

    events = [event("a_kernel_time", 900), event("a_fence_before", 5), event("a_kernel_time", 300)]
    events += [event("a_kernel_time", 200), {"cat": "Session", "name": "run", "dur": 1}]
    (node,) = read_profile(events, skip=1)
    assert (node.node, node.operator, node.ms, node.bytes) == ("a", "MatMul", (0.3, 0.2), 48)
    assert node.typical_ms == 0.2


def plan_file(root: Path) -> Path:
    def tensor(name: str, *shape: int) -> LayerTensor:
        return LayerTensor(name=name, shape=shape, dtype="Half")

    layers = (
        Layer(
            name="gemm_1",
            kind="gemm",
            cls="gemm",
            profile=0,
            inputs=(tensor("x", 1, 100, 64),),
            constants=(tensor("w", 64, 192),),
            outputs=(tensor("y", 1, 100, 192),),
            onnx=tuple(f"blocks.0.self_attn.{n}/MatMul_{i}" for i, n in enumerate("qkv")),
        ),
        Layer(
            name="_gemm_mha_v2",
            kind="kgen",
            cls="attention",
            profile=0,
            inputs=(tensor("q", 1, 2, 100, 32),),
            constants=(),
            outputs=(tensor("z", 1, 2, 100, 32),),
            onnx=("blocks.0/TRT_Attention_9",),
        ),
    )
    table = LayerTable(layers=layers, weights_bytes=1, activation_bytes=(1,), warnings=())
    path = root / "dit_step.layers.json"
    path.write_text(json.dumps(to_dict(table)))
    return path


def test_plan_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plan_file(tmp_path)
    rows = plan_rows(read_layers(path), "class")
    assert [(r.name, r.layers, r.classes) for r in rows] == [
        ("qkvo", 1, "gemm 1"),
        ("self_attention", 1, "attention 1"),
    ]
    assert "Half 1" in plan_text(rows)
    assert main(["profile", "layers", "--plan", str(path)]) == 0
    assert "self-attention / attention" in capsys.readouterr().out

    times = tmp_path / "times.json"
    times.write_text(json.dumps([{"count": 5}, {"name": "gemm_1", "averageMs": 0.25}]))
    (one,) = plan_times(read_layers(path), read_times(times))
    assert (one.ms, one.layer.accounting) == (0.25, "qkvo")
    assert one.bytes == 2 * (6400 + 64 * 192 + 19200)
    times.write_text(json.dumps([{"name": "other", "averageMs": 1}]))
    with pytest.raises(UsageError, match="'other', which the plan lacks"):
        plan_times(read_layers(path), read_times(times))
    with pytest.raises(UsageError, match="cannot be read"):
        read_layers(tmp_path / "none.json")


def test_command_on_a_bundle(
    micro_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["profile", "layers", "--bundle", str(micro_bundle), "--precision", "fp32"]
    plot = tmp_path / "roof.png"
    assert main([*args, "--runs", "2", "--plot", str(plot), "--by", "class"]) == 0
    out = capsys.readouterr().out
    for name in ("qkvo", "self_attention", "ffn", "gather_scatter", "fix first"):
        assert name in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    figures = json.loads(out.splitlines()[-1])["figures"]
    assert figures["ms.ffn"]["value"] > 0
    assert main([*args, "--kept", "100000"]) == 2
    assert "the tokens of a chunk" in capsys.readouterr().err
