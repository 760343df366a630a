"""TensorRT-RTX takes the plugins where they are registered and the function bodies elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

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


def rtx_environment(links: Path) -> dict[str, str]:
    """The RTX parser opens ``libtensorrt_rtx.so`` and aborts without it; wheels have only .so.1."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.submodule_search_locations
    library = Path(spec.submodule_search_locations[0]) / "libtensorrt_rtx.so.1"
    (links / "libtensorrt_rtx.so").symlink_to(library)
    return {**os.environ, "LD_LIBRARY_PATH": f"{links}:{library.parent}"}


def build(folder: Path, plugins: str, dtype: str) -> dict[str, Any]:
    path = folder / "block.onnx"
    path.write_bytes(block_model(dtype).SerializeToString())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("rtx_build.py")), str(path), plugins],
        capture_output=True,
        text=True,
        env=rtx_environment(folder),
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


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "real"), [("float16", "Half"), ("bfloat16", "BFloat16")])
def test_plugin_library_is_in_the_plan(
    tmp_path: Path, cuda_build: Path, dtype: str, real: str
) -> None:
    library = cuda_build / PLUGIN_LIBRARY
    if not library.is_file():
        pytest.skip("TENSORRT_INCLUDE_DIR is not set, so the C++ adapters are not built")
    assert_both_plugins(build(tmp_path, str(library), dtype), real)
