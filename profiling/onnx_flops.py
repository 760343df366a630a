"""FLOPs of an exported graph, counted node by node, to hold the accounting against.

Needs the `onnx` package. Shapes come from ONNX shape inference with every dynamic dimension bound;
function bodies are inlined first, so a custom node counts what its body does. Attention with a KV
length counts the keys it sees, not the cache's capacity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liveedit.errors import UsageError
from liveedit.profiling.layer_names import LayerName, parse_layer

_NO_ARITHMETIC_HIDDEN = {"Einsum", "LSTM", "GRU", "RNN", "MatMulInteger", "ConvInteger"}


@dataclass(frozen=True, kw_only=True)
class NodeFlops:
    """One node that multiplies: FLOPs and the compulsory bytes of its tensors."""

    node: str
    operator: str
    layer: LayerName
    flops: float
    bytes: float


def count(
    model: Any, *, dims: Mapping[str, int] | None = None, kv_length: int | None = None
) -> list[NodeFlops]:
    """Every multiplying node of a model.

    Args:
        model: an `onnx.ModelProto` (weights need not be loaded) or a path.
        dims: value of each dynamic dimension, e.g. ``{"num_keep": 1404}``.
        kv_length: keys an attention with KV lengths sees; default: the cache's capacity.

    Raises:
        UsageError: a dynamic dimension has no value, or a shape cannot be inferred.
    """
    import onnx
    from onnx import inliner, shape_inference

    if isinstance(model, str | Path):
        model = onnx.load(str(model), load_external_data=False)
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for function in bound.functions:
        _drop_run_time_slices(function)
    owners = _owners(bound)
    _bind(bound, dims or {})
    flat = inliner.inline_local_functions(bound)
    flat = shape_inference.infer_shapes(flat, strict_mode=True, data_prop=True)
    shapes, widths = _shapes(flat)
    out = []
    assert len(owners) == len(flat.graph.node), (len(owners), len(flat.graph.node))
    for node, (name, operator) in zip(flat.graph.node, owners, strict=True):
        flops = _node_flops(node, shapes, kv_length)
        if flops is None:
            continue
        tensors = [*node.input[:3], *node.output[:1]]
        moved = sum(math.prod(shapes[t]) * widths[t] for t in tensors if t and t in shapes)
        out.append(
            NodeFlops(
                node=name,
                operator=node.op_type,
                layer=parse_layer(name, operator),
                flops=flops,
                bytes=float(moved),
            )
        )
    return out


def by_class(nodes: Iterable[NodeFlops]) -> dict[str, float]:
    """FLOPs per accounting class."""
    out: dict[str, float] = {}
    for n in nodes:
        out[n.layer.accounting] = out.get(n.layer.accounting, 0.0) + n.flops
    return out


def _drop_run_time_slices(function: Any) -> None:
    """Let a body read whole what it cuts at a length known only when it runs (valid KV rows).

    Their shapes could not be inferred; what such a cut saves is counted through ``kv_length``.
    """
    constants = {o for n in function.node if n.op_type == "Constant" for o in n.output}
    cut = [n for n in function.node if n.op_type == "Slice" and n.input[2] not in constants]
    whole = {n.output[0]: n.input[0] for n in cut}
    for node in cut:
        function.node.remove(node)
    for node in function.node:
        for i, name in enumerate(node.input):
            node.input[i] = whole.get(name, name)


def _owners(model: Any) -> list[tuple[str, str]]:
    """Name and operator of the original node that each node of the inlined graph comes from.

    The inliner replaces a call by its body in place and drops the names.
    """
    functions = {(f.domain, f.name): f for f in model.functions}

    def size(node: Any) -> int:
        body = functions.get((node.domain, node.op_type))
        return 1 if body is None else sum(size(inner) for inner in body.node)

    return [(node.name, node.op_type) for node in model.graph.node for _ in range(size(node))]


def _bind(model: Any, dims: Mapping[str, int]) -> None:
    """Replace dynamic dimensions of inputs by numbers and drop inferred shapes."""
    del model.graph.value_info[:]
    for value in model.graph.input:
        for d in value.type.tensor_type.shape.dim:
            if d.dim_param:
                if d.dim_param not in dims:
                    raise UsageError(
                        f"input {value.name!r} has the dynamic dimension {d.dim_param!r}; give its "
                        f"value, for example dims={{'{d.dim_param}': 128}}"
                    )
                d.dim_value = dims[d.dim_param]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _shapes(model: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    from onnx import helper

    shapes: dict[str, tuple[int, ...]] = {}
    widths: dict[str, float] = {}
    graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
            widths[value.name] = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        widths[tensor.name] = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return shapes, widths


def _node_flops(
    node: Any, shapes: Mapping[str, tuple[int, ...]], kv_length: int | None
) -> float | None:
    """FLOPs of one node; None for what multiplies nothing.

    Raises:
        UsageError: its shapes are unknown, or it multiplies in a way that is not counted here.
    """
    kind = node.op_type
    if kind in _NO_ARITHMETIC_HIDDEN:
        raise UsageError(f"node {node.name!r} is {kind}, whose FLOPs are not counted")
    if kind not in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"):
        return None

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise UsageError(f"node {node.name!r} ({kind}): the shape of {name!r} is not known")
        return shapes[name]

    if kind == "MatMul":
        return 2.0 * math.prod(shape(node.output[0])) * shape(node.input[0])[-1]
    if kind == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = shape(node.input[0])[0 if transposed else 1]
        return 2.0 * math.prod(shape(node.output[0])) * inner
    if kind == "Conv":
        return 2.0 * math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])
    if kind == "ConvTranspose":
        return 2.0 * math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])
    return _attention_flops(node, shape, kv_length)


def _attention_flops(node: Any, shape: Any, kv_length: int | None) -> float:
    query, key, value = (shape(n) for n in node.input[:3])
    attributes = {a.name: a.i for a in node.attribute}
    if len(query) == 4:  # [B, heads, tokens, head_dim]
        rows = query[0] * query[1] * query[2]
        keys, width = key[2], query[3] + value[3]
    else:  # [B, tokens, heads * head_dim]
        rows = query[0] * query[1] * attributes["q_num_heads"]
        keys = key[1]
        width = (query[2] + value[2] * attributes["q_num_heads"] // attributes["kv_num_heads"]) // (
            attributes["q_num_heads"]
        )
    has_length = len(node.input) > 6 and bool(node.input[6])
    if has_length and kv_length is not None:
        if not 0 < kv_length <= keys:
            raise UsageError(f"kv_length {kv_length} is not in 1..{keys}, the cache's capacity")
        keys = kv_length
    return float(2 * rows * keys * width)
