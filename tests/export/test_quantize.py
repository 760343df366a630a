"""Q/DQ insertion against numpy, on the step of a small bundle and on single layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from liveedit.bundle import read_manifest
from liveedit.config import DiTConfig
from liveedit.errors import UsageError
from liveedit.export.graph_trial import Clip, Trial, load_step
from liveedit.export.linears import Linear, choose, constant, default_layers, linears
from liveedit.export.quantize import FORMATS, SiteScale, quantise, rounded, sites, weight_scale
from liveedit.export.smoothing import smooth

Q = "blocks.0.self_attn.q"


def one_linear(channels: int = 48, outputs: int = 40) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((channels, outputs)).astype(np.float32)
    weight[:, 0] = 0  # a channel without any weight
    nodes = [
        helper.make_node("Identity", ["x"], ["n"], name="n"),
        helper.make_node("MatMul", ["n", f"{Q}.weight.T"], ["m"], name=f"{Q}/MatMul_1"),
        helper.make_node("Add", ["m", "bias"], ["y"], name="add"),
    ]
    real = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", real, [1, "T", channels])],
        [helper.make_tensor_value_info("y", real, [1, "T", outputs])],
        [
            numpy_helper.from_array(weight, f"{Q}.weight.T"),
            numpy_helper.from_array(rng.standard_normal(outputs).astype(np.float32), "bias"),
        ],
        value_info=[
            helper.make_tensor_value_info("n", real, [1, "T", channels]),
            helper.make_tensor_value_info("m", real, [1, "T", outputs]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("smoothed", [False, True])
def test_a_linear_equals_its_numpy_form(name: str, smoothed: bool) -> None:
    proto, form = one_linear(), FORMATS[name]
    weight, bias = (numpy_helper.to_array(t) for t in proto.graph.initializer)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 13, len(weight))).astype(np.float32)
    factor = np.exp(rng.uniform(-2, 2, len(weight))).astype(np.float32) if smoothed else None
    model = ir.from_proto(proto)
    divided = x if factor is None else x * (1 / factor).astype(np.float32)
    scale = float(np.abs(divided).max()) / form.largest
    assert quantise(model, [Q], {"n": SiteScale(scale, factor)}, form) == 1
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"x": x})
    scaled = weight if factor is None else weight * factor[:, None]
    step = rounded(scale, np.dtype(np.float32))
    columns = weight_scale(scaled, form, np.dtype(np.float32))
    left = form.encode(divided / step).astype(np.float64) * step
    right = form.encode(scaled / columns).astype(np.float64) * columns
    np.testing.assert_allclose(got, left @ right + bias, rtol=1e-4, atol=1e-4)
    assert np.abs(left @ right - x @ weight).max() > 1e-3  # it did round


def test_scales_of_float16_graphs_stay_normal_numbers() -> None:
    assert rounded(1e-9, np.dtype(np.float16)) == np.finfo(np.float16).tiny
    assert (weight_scale(np.zeros((4, 3), np.float32), FORMATS["int8"], np.dtype("f2")) > 0).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_smoothing_alone_changes_nothing(micro_bundle: Path, precision: str) -> None:
    manifest = read_manifest(micro_bundle)
    frames = np.random.default_rng(3).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    clip = Clip("noise", frames, "turn it red")
    model, rng = load_step(micro_bundle, manifest, precision), np.random.default_rng(4)
    explicit = []
    for tensor, readers in reversed(sites(linears(model)).items()):
        channels = int(readers[0].weight.shape[0])
        factor = np.exp(rng.uniform(-0.7, 0.7, channels)).astype(np.float32)
        x = readers[0].x
        divided = smooth(model, x, factor, readers, {})
        if divided is x:
            continue
        explicit += [r.name for r in readers]
        for reader in readers:
            weight = constant(reader.weight) * factor[:, None]
            reader.node.replace_input_with(0, divided)
            reader.node.replace_input_with(1, initializer(model, f"{tensor}.w", weight, reader))
    assert sorted(explicit) == [
        f"blocks.{i}.{n}" for i in range(2) for n in ("cross_attn.o", "ffn.2")
    ]
    with Trial(micro_bundle, manifest, precision, threads=1) as trial:
        before = trial.edit(clip).astype(int)
        trial.backend.swap(model)
        after = trial.edit(clip).astype(int)
    assert before.std() > 5
    assert np.abs(before - after).max() <= (1 if precision == "fp32" else 12)
    assert np.abs(before - after).mean() < 0.5


def initializer(model: ir.Model, name: str, data: np.ndarray, like: Linear) -> ir.Value:
    tensor = ir.tensor(data.astype(like.weight.dtype.numpy()), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
    value.shape = ir.Shape(data.shape)
    model.graph.initializers[name] = value
    return value


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_whole_step_is_quantised(micro_bundle: Path, precision: str, name: str) -> None:
    manifest, form = read_manifest(micro_bundle), FORMATS[name]
    model = load_step(micro_bundle, manifest, precision)
    functions = set(model.functions)
    found = linears(model)
    assert len(found) == 2 * 8
    scales = {t: SiteScale(4 / form.largest) for t in sites(found)}
    assert quantise(model, list(found), scales, form) == 16
    kinds = [n.op_type for n in model.graph]
    assert kinds.count("QuantizeLinear") == 2 * 6  # q, k and v share theirs
    assert kinds.count("DequantizeLinear") == 2 * 6 + 16
    assert kinds.count("MaskCacheGather") == 2
    assert set(model.functions) == functions
    coded = [v for v in model.graph.initializers.values() if v.const_value.dtype == form.dtype]
    assert sum(len(v.shape) == 2 for v in coded) == 16
    assert not linears(model)
    frames = np.random.default_rng(3).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    clip = Clip("noise", frames, "turn it red")
    with Trial(micro_bundle, manifest, precision, threads=1) as trial:
        before = trial.edit(clip).astype(int)
        trial.backend.swap(model)
        after = trial.edit(clip).astype(int)
    assert 0 < np.abs(before - after).mean() < 12


def test_layers_are_chosen_by_name() -> None:
    names = [f"blocks.{i}.{n}" for i in range(30) for n in ("self_attn.q", "ffn.0", "ffn.2")]
    assert choose(names, ["blocks.2.*", "blocks.1?.ffn.0"])[:4] == (
        "blocks.2.self_attn.q",
        "blocks.2.ffn.0",
        "blocks.2.ffn.2",
        "blocks.10.ffn.0",
    )
    with pytest.raises(UsageError, match=r"no linear layer matches 'blocks\.\*\.mlp'.*90 in all"):
        choose(names, ["blocks.*.ffn.0", "blocks.*.mlp"])
    official = default_layers(names, DiTConfig())
    assert len(official) == 24 * 2
    assert {n.split(".")[1] for n in official} == {str(i) for i in range(3, 27)}
    assert len(default_layers(names[:18], DiTConfig(dim=192, num_layers=6, num_heads=3))) == 18
