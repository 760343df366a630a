"""Stand-in graphs with the structure of the exported ones, small enough to build in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "liveedit"
OPSETS = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
ONNX_TYPES = {"real": TensorProto.FLOAT16, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


def attention_function() -> onnx.FunctionProto:
    """``TRT_Attention`` in standard operators: padded K/V, one length per batch, no scale."""
    return helper.make_function(
        DOMAIN,
        "TRT_Attention",
        ["query", "key", "value", "mask", "query_lengths", "kv_lengths"],
        ["output"],
        [
            helper.make_node("Cast", ["kv_lengths"], ["lengths"], to=TensorProto.INT64),
            helper.make_node(
                "Attention",
                ["query", "key", "value", "", "", "", "lengths"],
                ["output"],
                scale=1.0,
            ),
        ],
        [helper.make_opsetid("", 24)],
    )


class Net:
    """Nodes and weights of one graph under construction; every call returns a tensor name."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes)
        )
        return name

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"const_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        value = self.random.standard_normal(shape) / np.sqrt(shape[0])
        return self.const(value, np.float16)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        y = self.op("MatMul", x, self.weight(inputs, outputs))
        return self.op("Add", y, self.const(np.zeros(outputs), np.float16))


def step_model(
    *,
    blocks: int = 2,
    heads: int = 2,
    head_dim: int = 64,
    tokens: int = 96,
    cache: int = 384,
    drop_lengths: bool = False,
    float_linear: bool = False,
) -> onnx.ModelProto:
    """A diffusion step with KV caches in place, KV lengths, and a dynamic number of kept tokens.

    ``drop_lengths`` writes standard ``Attention`` with ``nonpad_kv_seqlen``, whose lengths the
    TensorRT parser silently ignores. ``float_linear`` leaves the output projections in FP32.
    """
    net, dim = Net(), heads * head_dim
    inputs = {
        "x": ("real", [1, tokens, dim]),
        "keep_index": ("int32", ["num_keep"]),
        "token_row": ("int32", [tokens]),
        "write_index": ("int64", [1]),
        "kv_length": ("int32", [1]),
    }
    outputs: dict[str, tuple[str, list[int | str]]] = {}
    split = net.const([1, -1, heads, head_dim])
    merge = net.const([1, -1, dim])
    scale = net.const(head_dim**-0.5, np.float16)
    zero = net.const(0, np.int32)

    def heads_of(t: str) -> str:
        return net.op("Transpose", net.op("Reshape", t, split), perm=[0, 2, 1, 3])

    safe_row = net.op("Max", "token_row", zero)
    is_kept = net.op("Unsqueeze", net.op("GreaterOrEqual", "token_row", zero), net.const([0, 2]))
    y = net.op("Gather", "x", net.op("Max", "keep_index", zero), axis=1)
    stored = ""
    for block in range(blocks):
        k_in, v_in, store_in = (f"{n}_{block:02}" for n in ("k_cache", "v_cache", "attn_store"))
        inputs[k_in] = inputs[v_in] = ("real", [1, heads, cache, head_dim])
        inputs[store_in] = ("real", [1, tokens, dim])
        q, k, v = (net.linear(y, dim, dim) for _ in range(3))
        k_out, v_out, store_out = f"{k_in}_out", f"{v_in}_out", f"{store_in}_out"
        for new, old, out in ((k, k_in, k_out), (v, v_in, v_out)):
            net.nodes.append(
                helper.make_node("TensorScatter", [old, heads_of(new), "write_index"], [out])
            )
            outputs[out] = ("real", [1, heads, cache, head_dim])
        q = net.op("Mul", heads_of(q), scale)
        if drop_lengths:
            lengths = net.op("Cast", "kv_length", to=TensorProto.INT64)
            a = net.op("Attention", q, k_out, v_out, "", "", "", lengths, scale=1.0)
        else:
            a = net.op("TRT_Attention", q, k_out, v_out, "", "", "kv_length", domain=DOMAIN)
        a = net.op("Reshape", net.op("Transpose", a, perm=[0, 2, 1, 3]), merge)
        if float_linear:
            a = net.op("Cast", a, to=TensorProto.FLOAT)
            a = net.op("MatMul", a, net.const(net.random.random((dim, dim)), np.float32))
            a = net.op("Cast", a, to=TensorProto.FLOAT16)
        else:
            a = net.linear(a, dim, dim)
        filled = net.op("Where", is_kept, net.op("Gather", a, safe_row, axis=1), store_in)
        net.nodes.append(helper.make_node("Identity", [filled], [store_out]))
        outputs[store_out] = ("real", [1, tokens, dim])
        stored = filled
        y = net.op("Add", y, a)
        up = net.op("Gelu", net.linear(y, dim, 4 * dim), approximate="tanh")
        y = net.op("Add", y, net.linear(up, 4 * dim, dim))
    full = net.op("Where", is_kept, net.op("Gather", y, safe_row, axis=1), stored)
    net.nodes.append(helper.make_node("Identity", [full], ["x0"]))
    outputs["x0"] = ("real", [1, tokens, dim])
    return model_of(net, inputs, outputs)


def model_of(
    net: Net,
    inputs: dict[str, tuple[str, list[int | str]]],
    outputs: dict[str, tuple[str, list[int | str]]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        net.nodes,
        "stand_in",
        [helper.make_tensor_value_info(n, ONNX_TYPES[t], s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, ONNX_TYPES[t], s) for n, (t, s) in outputs.items()],
        net.weights,
    )
    model = helper.make_model(
        graph, opset_imports=OPSETS, functions=[attention_function()], ir_version=11
    )
    onnx.checker.check_model(model)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write with the weights in one external file, as the exporter does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=256,
    )
    return path
