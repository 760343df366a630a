"""Weight-only eight bits: stored small, widened in the graph, products as precise as before.

Every matrix of the blocks gets one scale per output channel, the embedding table one per row. A
DequantizeLinear stands between the stored weight and its reader; builders fuse it with the product,
or with the rows that a prompt looks up. Norms and position tables stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from liveedit.export.lazy import lazy_value
from liveedit.export.linears import linears, stored
from liveedit.export.quantize import Format, rounded

EMBEDDING = "token_embedding.weight"
_ROWS = 4096  # of a weight that are in float32 at a time


def store_in_eight_bits(model: ir.Model, form: Format) -> int:
    """Store the matrices of an encoder's blocks and its embedding table in eight bits, in place.

    Returns:
        The number of weights that are now stored so.
    """
    count = 0
    for layer in linears(model).values():
        layer.node.replace_input_with(1, widened(model, layer.weight, 1, form, layer.node))
        count += 1
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and (table.name or "").startswith(EMBEDDING):
            node.replace_input_with(0, widened(model, table, 0, form, node))
            count += 1
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    return count


def widened(
    model: ir.Model, weight: ir.Value, axis: int, form: Format, reader: ir.Node
) -> ir.Value:
    """``weight`` behind a DequantizeLinear with a scale for each entry of ``axis``, 0 or its last.

    Its eight-bit form is made when it is written.
    """
    tensor, real = stored(weight), weight.dtype
    assert tensor is not None
    assert real is not None
    scale = rounded(_largest(tensor, axis) / form.largest, real.numpy())

    def make() -> np.ndarray[Any, Any]:
        data = tensor.numpy()
        out = np.empty(data.shape, form.dtype.numpy())
        rows = scale.reshape(-1, *(1,) * (data.ndim - 1))
        for start in range(0, len(data), _ROWS):
            steps = rows[start : start + _ROWS] if axis == 0 else scale
            out[start : start + _ROWS] = form.encode(
                data[start : start + _ROWS].astype(np.float32) / steps
            )
        return out

    name, graph = f"{weight.name}", model.graph
    coded = lazy_value(make, form.dtype, list(tensor.shape), f"{name}.{form.name}")
    steps = lazy_value(_constantly(scale.astype(real.numpy())), real, [len(scale)], f"{name}.scale")
    for value in (coded, steps):
        graph.initializers[value.name or ""] = value
    path = reader.name.rsplit("/", 1)[0] if reader.name else name
    node = ir.node("DequantizeLinear", [coded, steps], {"axis": axis}, name=f"{path}/Dequantize")
    node.outputs[0].name = f"{name}.dequantised"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(real), weight.shape
    graph.insert_before(reader, node)
    return node.outputs[0]


def _constantly(array: np.ndarray[Any, Any]) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: array


def _largest(tensor: ir.TensorProtocol, axis: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Largest magnitude of each entry of an axis, a few rows at a time."""
    data, found = tensor.numpy(), []
    others = tuple(i for i in range(data.ndim) if i != axis)
    for start in range(0, len(data), _ROWS):
        found.append(np.abs(data[start : start + _ROWS]).astype(np.float32).max(axis=others))
    joined = np.concatenate(found) if axis == 0 else np.max(found, axis=0)
    return np.asarray(joined, np.float32)
