"""INT8 for the residual convolutions of the Wan VAE, which do most of its work.

Each is a 3D convolution over two past frames and the present ones. Its input gets one static
scale, the same in the graph of the first call and of the next ones; its weight one per output
channel. Biases, shortcuts, attention, resampling and both ends stay in high precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from liveedit.export.quantize import Format, activation_pair, rounded
from liveedit.export.weight_only import widened

_RESIDUAL = re.compile(r"((?:encoder|decoder)\..+\.residual\.[26])/Conv_\d+")


def residual_convolutions(model: ir.Model) -> dict[str, ir.Node]:
    """The second and the last layer of each residual branch, by their checkpoint name."""
    found = {}
    for node in model.graph:
        match = _RESIDUAL.fullmatch(node.name or "") if node.op_type == "Conv" else None
        if match:
            found[match[1]] = node
    return found


def probe_inputs(model: ir.Model) -> list[str]:
    """Add an output ``amax:<convolution>`` [1] to a graph for each of them, in place."""
    names = []
    for name, conv in residual_convolutions(model).items():
        x = conv.inputs[0]
        assert x is not None
        size = ir.node("Abs", [x], name=f"{name}/probe_Abs")
        wide = ir.node("Cast", size.outputs, {"to": ir.DataType.FLOAT}, name=f"{name}/probe_Cast")
        most = ir.node("ReduceMax", wide.outputs, {"keepdims": 0}, name=f"{name}/probe_Max")
        for node in (size, wide, most):
            node.outputs[0].name = f"{node.name}.out"
            model.graph.append(node)
        out = most.outputs[0]
        out.name = f"amax:{name}"
        out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        model.graph.outputs.append(out)
        names.append(out.name)
    return names


def quantise_convolutions(model: ir.Model, amax: Mapping[str, float], form: Format) -> int:
    """Quantise them, in place. ``amax``: largest magnitude that each reads.

    Returns:
        The number of convolutions that read eight-bit numbers now.
    """
    found = residual_convolutions(model)
    for name, conv in found.items():
        x, weight = conv.inputs[0], conv.inputs[1]
        assert x is not None
        assert x.dtype is not None
        assert weight is not None
        scale = rounded(amax[name] / form.largest, x.dtype.numpy())
        conv.replace_input_with(0, activation_pair(model, x, scale, form))
        conv.replace_input_with(1, widened(model, weight, 0, form, conv))
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    return len(found)
