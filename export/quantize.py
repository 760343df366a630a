"""Writes QuantizeLinear/DequantizeLinear pairs onto an exported graph, in place.

Symmetric, zero point 0. Weights: one scale per output channel, stored in eight bits. Activations:
one static scale per tensor, and one pair of nodes for all linears that read it, so that q, k and v
stay one matrix product. Biases, plugin nodes and function bodies are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from liveedit.errors import UsageError
from liveedit.export.lazy import lazy_value
from liveedit.export.linears import Linear, constant, linears, stored
from liveedit.export.smoothing import smooth

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Format:
    """An eight-bit number format."""

    name: str
    dtype: ir.DataType
    largest: float

    def encode(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Nearest representable numbers of values already divided by their scale."""
        clipped = np.clip(values, -self.largest, self.largest)
        if self.dtype == ir.DataType.INT8:
            return np.rint(clipped).astype(np.int8)
        return clipped.astype(ml_dtypes.float8_e4m3fn)


FORMATS = {
    "int8": Format("int8", ir.DataType.INT8, 127.0),
    "fp8": Format("fp8", ir.DataType.FLOAT8E4M3FN, 448.0),
}


def find_format(name: str) -> Format:
    """
    Raises:
        UsageError: no such format.
    """
    if name not in FORMATS:
        raise UsageError(f"no eight-bit precision {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class SiteScale:
    """How one activation tensor is quantised.

    ``smooth`` [C]: the tensor is divided by it and the rows of its linears' weights multiplied.
    ``scale``: value of one step of the divided tensor.
    ``mean``, ``coded_mean`` [C]: mean row of the divided tensor, exact and after rounding. With
    them the mean error of a linear's output is taken off its bias.
    """

    scale: float
    smooth: Array | None = field(default=None, compare=False)
    alpha: float | None = None  # how ``smooth`` was made
    cut: str = "max"  # how ``scale`` was made
    mean: Array | None = field(default=None, compare=False)
    coded_mean: Array | None = field(default=None, compare=False)


def sites(layers: Mapping[str, Linear]) -> dict[str, list[Linear]]:
    """Linears by the tensor that they read."""
    found: dict[str, list[Linear]] = {}
    for layer in layers.values():
        assert layer.x.name is not None
        found.setdefault(layer.x.name, []).append(layer)
    return found


def rounded(scale: Array | float, real: np.dtype[Any]) -> Array:
    """Scales as the graph stores them. A float16 scale stays a normal number."""
    least = np.float32(np.finfo(real).tiny)
    return np.maximum(np.asarray(scale, np.float32), least).astype(real).astype(np.float32)


def weight_scale(weight: Array, form: Format, real: np.dtype[Any]) -> Array:
    """One scale per column of a weight [in, out]."""
    return rounded(np.abs(weight).max(axis=0) / form.largest, real)


def quantise(
    model: ir.Model,
    names: Sequence[str],
    scales: Mapping[str, SiteScale],
    form: Format,
) -> int:
    """Quantise the named linears. ``scales`` holds every tensor they read.

    Returns:
        The number of linears that read eight-bit numbers now.
    """
    found = linears(model)
    chosen = {n: found[n] for n in names}
    # Backwards, so that what o divides its input by is in v's weight before v is quantised.
    for tensor, readers in reversed(sites(chosen).items()):
        site = scales[tensor]
        x = readers[0].x
        real = x.dtype
        assert real is not None
        factor = site.smooth
        if factor is not None:
            x = smooth(model, x, factor, [r for r in found.values() if r.x is x], chosen)
        scale = rounded(site.scale, real.numpy())
        pair = activation_pair(model, x, scale, form)
        for reader in readers:
            _bias_as_row(model, reader, _mean_error(reader, site, form))
            reader.node.replace_input_with(0, pair)
            reader.node.replace_input_with(1, _weight(model, reader, factor, form))
    _drop_unused(model)
    return len(chosen)


def _initializer(model: ir.Model, name: str, data: np.ndarray[Any, Any]) -> ir.Value:
    if name not in model.graph.initializers:
        tensor = ir.tensor(data, name=name)
        model.graph.initializers[name] = ir.Value(
            name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )  # fmt: skip
    return model.graph.initializers[name]


def _zero(model: ir.Model, form: Format) -> ir.Value:
    return _initializer(model, f"{form.name}.zero_point", np.zeros((), form.dtype.numpy()))


def activation_pair(model: ir.Model, x: ir.Value, scale: Array, form: Format) -> ir.Value:
    assert x.dtype is not None
    step = _initializer(model, f"{x.name}.scale", scale.astype(x.dtype.numpy()))
    zero = _zero(model, form)
    q = ir.node("QuantizeLinear", [x, step, zero], name=f"{x.name}/QuantizeLinear")
    dq = ir.node("DequantizeLinear", [q.outputs[0], step, zero], name=f"{x.name}/Dequantize")
    q.outputs[0].name, dq.outputs[0].name = f"{x.name}.{form.name}", f"{x.name}.dequantised"
    q.outputs[0].type, dq.outputs[0].type = ir.TensorType(form.dtype), x.type
    q.outputs[0].shape = dq.outputs[0].shape = x.shape
    producer = x.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [q, dq])
    else:
        model.graph.insert_after(producer, [q, dq])
    return dq.outputs[0]


def _mean_error(layer: Linear, site: SiteScale, form: Format) -> Array | None:
    """What rounding adds to the layer's mean output [out]; None where the means are not known."""
    real = layer.weight.dtype
    assert real is not None
    if site.mean is None or site.coded_mean is None:
        return None
    weight = constant(layer.weight)
    if site.smooth is not None:
        weight = weight * site.smooth[:, None]
    scale = weight_scale(weight, form, real.numpy())
    coded = form.encode(weight / scale).astype(np.float32) * scale
    return np.asarray(site.coded_mean @ coded - site.mean @ weight)


def _weight(model: ir.Model, layer: Linear, factor: Array | None, form: Format) -> ir.Value:
    """The layer's weight behind a DequantizeLinear."""
    real = layer.weight.dtype
    assert real is not None
    weight = constant(layer.weight)
    if factor is not None:
        weight = weight * factor[:, None]
    scale = weight_scale(weight, form, real.numpy())
    name = f"{layer.name}.weight.T"
    value = _coded(model, f"{name}.{form.name}", layer.weight, factor, scale, form)
    step = _initializer(model, f"{name}.scale", scale.astype(real.numpy()))
    node = ir.node("DequantizeLinear", [value, step], {"axis": 1}, name=f"{layer.name}/Dequantize")
    node.outputs[0].name = f"{name}.dequantised"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(real), ir.Shape(weight.shape)
    model.graph.insert_before(layer.node, node)
    return node.outputs[0]


def _coded(
    model: ir.Model, name: str, weight: ir.Value, factor: Array | None, scale: Array, form: Format
) -> ir.Value:
    """The weight in eight bits, made when it is written: no model is in memory twice."""
    tensor = stored(weight)
    assert tensor is not None

    def make() -> np.ndarray[Any, Any]:
        wide = tensor.numpy().astype(np.float32)
        return form.encode((wide if factor is None else wide * factor[:, None]) / scale)

    assert name not in model.graph.initializers, name
    value = lazy_value(make, form.dtype, list(tensor.shape), name)
    model.graph.initializers[name] = value
    return value


def _bias_as_row(model: ir.Model, layer: Linear, mean_error: Array | None) -> None:
    """Give the bias the rank of what it is added to, [out] to [1, 1, out], less the mean error.

    ONNX Runtime otherwise makes one Gemm of the product and its bias, reshapes the quantised input
    for it, and then refuses its own graph (seen with 1.32).
    """
    add = next(use.node for use in layer.node.outputs[0].uses())
    if add.op_type != "Add" or add.inputs[1] is None:
        return
    bias = add.inputs[1]
    assert bias.dtype is not None
    if stored(bias) is not None and bias.shape is not None and len(bias.shape) == 1:
        exact = constant(bias) if mean_error is None else constant(bias) - mean_error
        row = exact[None, None].astype(bias.dtype.numpy())
        add.replace_input_with(1, _initializer(model, f"{bias.name}.row", row))


def _drop_unused(model: ir.Model) -> None:
    """Constants that nothing reads any more, and the Casts behind which they lay."""
    for node in reversed(list(model.graph)):
        if node.op_type == "Cast" and not node.outputs[0].uses():
            source = node.inputs[0]
            if source is not None and source.const_value is not None:
                model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
