"""What a plan of an ONNX graph must contain, read off the graph itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from liveedit.engines.plugin_library import OPERATORS

LENGTHS_INPUT = {"TRT_Attention": 5, "Attention": 6}
LINEAR = frozenset({"MatMul", "Gemm"})
CAST_LIKE = frozenset({"Identity", "Cast"})
BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.FLOAT8E4M3FN: 8,
    onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.INT64: 64,
}


@dataclass(frozen=True, kw_only=True)
class AttentionFact:
    """One attention node. ``projections`` groups the linears behind q, k and v by their input."""

    node: str
    lengths: str | None  # the graph tensor that bounds the keys
    projections: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    attentions: tuple[AttentionFact, ...]
    softmaxes: tuple[str, ...]  # attention written out, which a builder may fuse
    plugins: dict[str, tuple[str, ...]]  # operator -> its nodes
    quantised_linears: tuple[str, ...]
    float_linears: tuple[str, ...]  # of the FP32 islands
    caches: tuple[str, ...]  # outputs of KV updates
    weights_bytes: int  # of the initializers that some node reads, 1 KiB and larger
    quantised_convolutions: tuple[str, ...] = ()


def read_facts(model: onnx.ModelProto) -> GraphFacts:
    """Facts of a graph; weights need not be loaded."""
    producers = {o: n for n in model.graph.node for o in n.output if o}
    plugins: dict[str, list[str]] = {}
    attentions, caches = [], []
    for node in model.graph.node:
        if node.op_type in OPERATORS:
            plugins.setdefault(node.op_type, []).append(node.name)
        if node.op_type in ("TensorScatter", "TRT_KVCacheUpdate"):
            caches.append(node.output[0])
        if node.op_type in LENGTHS_INPUT:
            attentions.append(_attention(node, producers))
    floats = {
        t.name
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1
    }
    read = {i for n in model.graph.node for i in n.input}
    return GraphFacts(
        attentions=tuple(attentions),
        softmaxes=tuple(n.name for n in model.graph.node if n.op_type == "Softmax"),
        plugins={k: tuple(v) for k, v in plugins.items()},
        quantised_linears=tuple(
            n.name
            for n in model.graph.node
            if n.op_type in LINEAR and _is_dequantised(n.input[0], producers)
        ),
        quantised_convolutions=tuple(
            n.name
            for n in model.graph.node
            if n.op_type == "Conv" and _is_dequantised(n.input[0], producers)
        ),
        float_linears=tuple(
            n.name for n in model.graph.node if n.op_type in LINEAR and floats & set(n.input)
        ),
        caches=tuple(caches),
        weights_bytes=sum(
            size for t in model.graph.initializer if t.name in read and (size := _bytes(t)) >= 1024
        ),
    )


def _attention(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> AttentionFact:
    position = LENGTHS_INPUT[node.op_type]
    lengths = node.input[position] if len(node.input) > position else ""
    while lengths in producers and producers[lengths].op_type in CAST_LIKE:
        lengths = producers[lengths].input[0]
    groups: dict[str, list[str]] = {}
    linears = {n.name: n for name in node.input[:3] for n in _linears_behind(name, producers)}
    for linear in linears.values():
        groups.setdefault(linear.input[0], []).append(linear.name)
    return AttentionFact(
        node=node.name,
        lengths=lengths or None,
        projections=tuple(tuple(g) for g in groups.values() if len(g) > 1),
    )


def _linears_behind(name: str, producers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nearest linears upstream of a tensor."""
    todo, seen = [name], set()
    while todo:
        node = producers.get(todo.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in LINEAR:
            yield node
        elif node.op_type not in LENGTHS_INPUT:
            todo += node.input


def _is_dequantised(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in ("Reshape", "Transpose", *CAST_LIKE):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(math.prod(tensor.dims)) * BITS.get(tensor.data_type, 32) // 8
