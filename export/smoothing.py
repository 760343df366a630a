"""SmoothQuant: move the outliers of an activation's channels into the weights that read it.

The tensor is divided by a factor per channel and the rows of every reader's weight are multiplied
by it, so the product is the same. Where the division goes depends on what makes the tensor:

- a modulated norm (``MaskCacheGather``, or ``norm * (1 + scale) + shift``): into scale and shift,
  which are one row for the whole chunk;
- a norm with weights of its own (before cross-attention): into those weights;
- self-attention (before o): into the columns of the v projection, since attention is linear in V.
  The V cache then holds divided values;
- anything else (GELU before the FFN's second linear, cross-attention, whose V comes from another
  graph): a Mul by a constant right before the QuantizeLinear, which a builder fuses with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from liveedit.export.lazy import lazy_value
from liveedit.export.linears import Linear, constant, linears, stored

Array = np.ndarray[Any, np.dtype[np.float32]]
_SAME_VALUES = frozenset({"Cast", "Reshape", "Identity"})


def smooth(
    model: ir.Model,
    x: ir.Value,
    factor: Array,
    readers: Sequence[Linear],
    quantised: Mapping[str, Linear],
) -> ir.Value:
    """Divide ``x`` by ``factor`` [C]. Returns the divided value, which may be ``x`` itself.

    Readers that are not ``quantised`` get their weight multiplied here; the others' callers do it.
    A division that cannot be folded leaves ``x`` as it is for them and returns a new value.
    """
    inverse = (1.0 / factor).astype(np.float32)
    folded = (
        len(x.uses()) == len(readers)
        and not x.is_graph_output()
        and (
            _into_gather(model, x, inverse)
            or _into_modulation(model, x, inverse)
            or _into_norm(model, x, inverse)
            or _into_values(model, x, inverse)
        )
    )
    if not folded:
        return _explicit(model, x, inverse)
    for reader in readers:
        if reader.name not in quantised:
            scaled = _scaled(model, reader.weight, factor[:, None], "smoothed")
            reader.node.replace_input_with(1, scaled)
    return x


def _scaled(model: ir.Model, weight: ir.Value, factor: Array, suffix: str) -> ir.Value:
    """A weight times a factor, in the weight's type, made when it is written."""
    tensor, dtype = stored(weight), weight.dtype
    assert tensor is not None
    assert dtype is not None

    def make() -> np.ndarray[Any, Any]:
        return (tensor.numpy().astype(np.float32) * factor).astype(dtype.numpy())

    name = f"{weight.name}.{suffix}"
    value = lazy_value(make, dtype, list(tensor.shape), name)
    model.graph.initializers[name] = value
    return value


def _constant(model: ir.Model, like: ir.Value, data: Array, suffix: str) -> ir.Value:
    """A new initializer of the type of ``like``."""
    assert like.dtype is not None
    name = f"{like.name}.{suffix}"
    tensor = ir.tensor(data.astype(like.dtype.numpy()), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.initializers[name] = value
    return value


def _after(model: ir.Model, value: ir.Value, op: str, data: Array, suffix: str) -> ir.Value:
    """``op(value, data)`` right before the first node that may need it."""
    other = _constant(model, value, data, suffix)
    node = ir.node(op, [value, other], name=f"{value.name}.{suffix}/{op}")
    out = node.outputs[0]
    out.name, out.type, out.shape = f"{value.name}.{suffix}.out", value.type, value.shape
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], node)
    else:
        model.graph.insert_after(producer, node)
    return out


def _into_gather(model: ir.Model, x: ir.Value, inverse: Array) -> bool:
    """y = n * (1 + scale) + shift: divided by f, scale becomes (scale + 1) / f - 1."""
    node = x.producer()
    if node is None or node.op_type != "MaskCacheGather":
        return False
    scale, shift = node.inputs[1], node.inputs[2]
    assert scale is not None
    assert shift is not None
    wider = _after(model, scale, "Mul", inverse, "smooth")
    node.replace_input_with(1, _after(model, wider, "Add", inverse - 1, "smooth_offset"))
    node.replace_input_with(2, _after(model, shift, "Mul", inverse, "smooth"))
    return True


def _into_modulation(model: ir.Model, x: ir.Value, inverse: Array) -> bool:
    """The same modulation written out: Add(Mul(n, factor), shift), one row each."""
    value, node = x, x.producer()
    while node is not None and node.op_type in _SAME_VALUES and len(value.uses()) >= 1:
        assert node.inputs[0] is not None
        value = node.inputs[0]
        if len(value.uses()) != 1:
            return False
        node = value.producer()
    if node is None or node.op_type != "Add":
        return False
    product, shift = node.inputs
    assert product is not None
    assert shift is not None
    mul = product.producer()
    if mul is None or mul.op_type != "Mul" or len(product.uses()) != 1:
        return False
    wide = mul.inputs[1]
    assert wide is not None
    if not (_is_row(wide, len(inverse)) and _is_row(shift, len(inverse))):
        return False
    mul.replace_input_with(1, _after(model, wide, "Mul", inverse, "smooth"))
    node.replace_input_with(1, _after(model, shift, "Mul", inverse, "smooth"))
    return True


def _is_row(value: ir.Value, channels: int) -> bool:
    shape = value.shape
    if shape is None or not len(shape) or shape[-1] != channels:
        return False
    return all(d == 1 for d in list(shape)[:-1])


def _into_norm(model: ir.Model, x: ir.Value, inverse: Array) -> bool:
    node = x.producer()
    if node is None or node.op_type != "LayerNormalization" or len(node.inputs) != 3:
        return False
    weight, bias = node.inputs[1], node.inputs[2]
    assert weight is not None
    assert bias is not None
    if stored(weight) is None or stored(bias) is None:
        return False
    for index, value in ((1, weight), (2, bias)):
        scaled = constant(value) * inverse
        node.replace_input_with(index, _constant(model, value, scaled, f"{x.name}.smooth"))
    return True


def _into_values(model: ir.Model, x: ir.Value, inverse: Array) -> bool:
    """Through attention over the cache, back to the v projection of the same block."""
    node = x.producer()
    for op in ("Reshape", "Transpose"):
        if node is None or node.op_type != op or node.inputs[0] is None:
            return False
        node = node.inputs[0].producer()
    if node is None or node.op_type != "TRT_Attention":
        return False
    reader = next(use.node for use in x.uses())
    layers = linears(model)
    o = next((n for n, layer in layers.items() if layer.node is reader), None)
    if o is None:
        return False
    v = layers.get(o.removesuffix(".o") + ".v")
    bias = next((use.node for use in v.node.outputs[0].uses()), None) if v else None
    if v is None or bias is None or bias.op_type != "Add" or bias.inputs[1] is None:
        return False
    if stored(bias.inputs[1]) is None:
        return False
    v.node.replace_input_with(1, _scaled(model, v.weight, inverse, "for_o"))
    bias.replace_input_with(
        1, _constant(model, bias.inputs[1], constant(bias.inputs[1]) * inverse, "for_o")
    )
    return True


def _explicit(model: ir.Model, x: ir.Value, inverse: Array) -> ir.Value:
    return _after(model, x, "Mul", inverse, "smooth")
