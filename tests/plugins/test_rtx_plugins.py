"""TensorRT-RTX takes the plugins where they are registered and the function bodies elsewhere."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from liveedit.engines.flavour import FLAVOURS, child_environment
from liveedit.export.functions import DOMAIN, NODE_ATTRIBUTES, add_functions
from liveedit.runtime.kernels import PLUGIN_LIBRARY

TOKENS, WIDTH = 96, 128
PLUGIN_NAMES = ("MaskCacheGather", "MaskCacheScatter")
ONNX_TYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
}

pytestmark = [
    pytest.mark.builder,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
    ),
]


def block_model(dtype: str) -> onnx.ModelProto:
    """LayerNorm -> MaskCacheGather -> MatMul -> MaskCacheScatter, number of kept tokens dynamic."""
    real = ONNX_TYPES[dtype]
    weights = {
        "weight": np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32) / 11,
        "ones": np.ones(WIDTH, np.float32),
    }
    nodes = [
        *(helper.make_node("Cast", [f"{n}_wide"], [n], to=real) for n in weights),
        helper.make_node("LayerNormalization", ["x", "ones"], ["normed"], epsilon=1e-6),
        helper.make_node(
            "MaskCacheGather",
            ["normed", "scale", "shift", "keep_index"],
            ["kept"],
            name="gather",
            domain=DOMAIN,
            **NODE_ATTRIBUTES,
        ),
        helper.make_node("MatMul", ["kept", "weight"], ["update"]),
        helper.make_node(
            "MaskCacheScatter",
            ["x", "update", "store", "gate", "token_row"],
            ["y", "store_out"],
            name="scatter",
            domain=DOMAIN,
            **NODE_ATTRIBUTES,
        ),
    ]
    rows, row = [1, TOKENS, WIDTH], [1, 1, WIDTH]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "block",
        [
            info("x", real, rows),
            info("store", real, rows),
            *(info(n, TensorProto.FLOAT, row) for n in ("scale", "shift", "gate")),
            info("keep_index", TensorProto.INT32, ["num_keep"]),
            info("token_row", TensorProto.INT32, [TOKENS]),
        ],
        [info("y", real, rows), info("store_out", real, rows)],
        [numpy_helper.from_array(v, f"{n}_wide") for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    add_functions(model, PLUGIN_NAMES)
    return model


def gather_first_model() -> onnx.ModelProto:
    """The same block with a native Gather of the residual before the LayerNorm."""
    model = block_model("float16")
    nodes = {n.output[0]: n for n in model.graph.node}
    constants = {
        "zero": np.zeros((), np.int32),
        "one": np.ones((), np.float32),
        "ones_float": np.ones(WIDTH, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    model.graph.ClearField("node")
    model.graph.node.extend(
        [
            nodes["weight"],
            helper.make_node("Max", ["keep_index", "zero"], ["safe"]),
            helper.make_node("Gather", ["x", "safe"], ["rows"], axis=1),
            helper.make_node("Cast", ["rows"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node(
                "LayerNormalization", ["wide", "ones_float"], ["normed"], epsilon=1e-6
            ),
            helper.make_node("Add", ["scale", "one"], ["factor"]),
            helper.make_node("Mul", ["normed", "factor"], ["product"]),
            helper.make_node("Add", ["product", "shift"], ["modulated"]),
            helper.make_node("Cast", ["modulated"], ["kept"], to=TensorProto.FLOAT16),
            nodes["update"],
            nodes["y"],
        ]
    )
    return model


def build(
    folder: Path, plugins: str, dtype: str, model: onnx.ModelProto | None = None
) -> dict[str, Any]:
    path = folder / "block.onnx"
    path.write_bytes((model or block_model(dtype)).SerializeToString())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("rtx_build.py")), str(path), plugins],
        capture_output=True,
        text=True,
        env=child_environment(FLAVOURS["tensorrt-rtx"], folder),
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not result["errors"]
    assert not result["unused"]
    assert result["plan_bytes"] > 0
    assert [shape for shape, _ in result["outputs"].values()] == [[1, TOKENS, WIDTH]] * 2
    return result


def plugin_layers(result: dict[str, Any]) -> list[str]:
    """A plugin is a layer of its own, or a custom layer inside a compiled region."""
    kinds = ("LayerType: PluginV3", "LayerType: custom_layer")
    return [layer for layer in result["layers"] if any(kind in layer for kind in kinds)]


def assert_both_plugins(result: dict[str, Any], real: str) -> None:
    layers = plugin_layers(result)
    assert len(layers) == 2, layers
    for node, layer in zip(("gather", "scatter"), layers, strict=True):
        assert f"[ONNX Layer: {node}]" in layer
        assert {"Half", "BFloat16"} & set(layer.replace(",", " ").split()) <= {real}
    assert not [n for n in result["layers"] if "LayerType: Reformat" in n]


@pytest.mark.parametrize(
    ("dtype", "real"), [("float16", "Half"), ("bfloat16", "BFloat16"), ("float32", "Float")]
)
def test_python_plugins_are_in_the_plan(tmp_path: Path, dtype: str, real: str) -> None:
    assert_both_plugins(build(tmp_path, "python", dtype), real)


def test_without_plugins_the_functions_are_inlined(tmp_path: Path) -> None:
    result = build(tmp_path, "none", "float16")
    assert plugin_layers(result) == []
    for name in PLUGIN_NAMES:
        assert [layer for layer in result["layers"] if f"({name})" in layer]


def test_gather_before_the_norm_becomes_one_kernel(tmp_path: Path) -> None:
    """The claim of docs/plugins.md that makes the gather plugin optional."""
    result = build(tmp_path, "none", "float16", gather_first_model())
    kernels = [n for n in result["layers"] if "LayerType: kgen" in n]
    assert len(kernels) == 2, kernels
    assert "Gath" in kernels[0]
    assert "Mean" in kernels[0]
    assert "Datatype: Half" in kernels[0].split("Outputs:")[1]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "real"), [("float16", "Half"), ("bfloat16", "BFloat16")])
def test_plugin_library_is_in_the_plan(
    tmp_path: Path, cuda_build: Path, dtype: str, real: str
) -> None:
    library = cuda_build / PLUGIN_LIBRARY
    if not library.is_file():
        pytest.skip("TENSORRT_INCLUDE_DIR is not set, so the C++ adapters are not built")
    assert_both_plugins(build(tmp_path, str(library), dtype), real)
