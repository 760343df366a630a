"""One torch module to one ONNX graph with stable names, weights kept out of memory."""

from __future__ import annotations

import ast
import gc
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from liveedit.bundle import DType, TensorSpec
from liveedit.export.lazy import lazy_tensor, lazy_value
from liveedit.export.operators import OPSET, translation_table
from liveedit.export.repeat import repeat_middle

# Folding is for shapes and indices; a folded weight would be a second copy of it.
_FOLD_LIMIT = 4096

_DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
}


_TORCH = {ir.DataType[d.upper().replace("FLOAT32", "FLOAT")]: t for t, d in _DTYPES.items()}


def flat_names(tree: dict[str, Any]) -> list[str]:
    """Input names in the order the exporter flattens them; list entries get `_00`, `_01`, ..."""
    names: list[str] = []
    for name, value in tree.items():
        if isinstance(value, list | tuple):
            names += [f"{name}_{i:02d}" for i in range(len(value))]
        else:
            names.append(name)
    return names


def flat_tensors(tree: dict[str, Any]) -> list[Tensor]:
    """Tensors in the order of `flat_names`."""
    return [t for v in tree.values() for t in (v if isinstance(v, list | tuple) else [v])]


def specs(tree: dict[str, Any], dynamic: dict[str, str] | None = None) -> tuple[TensorSpec, ...]:
    """Manifest entries of named tensors. ``dynamic`` names the first dimension of some of them."""
    out = []
    for name, tensor in zip(flat_names(tree), flat_tensors(tree), strict=True):
        shape: tuple[int | str, ...] = tuple(tensor.shape)
        if dynamic and name in dynamic:
            shape = (dynamic[name], *shape[1:])
        out.append(TensorSpec(name=name, dtype=_DTYPES[tensor.dtype], shape=shape))
    return tuple(out)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without garbage collection: looking through torch's objects for it takes a sixth of a trace.

    What a trace leaves in cycles is freed by the next collection after it.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_no_collection()
def trace(
    module: nn.Module,
    inputs: dict[str, Any],
    output_names: list[str],
    dynamic: dict[str, tuple[str, int, int]] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    blocks: int | None = None,
) -> ir.Model:
    """Export ``module(**inputs)``.

    Args:
        inputs: keyword arguments, tensors or lists of tensors, real or fake.
        output_names: flat names of the outputs.
        dynamic: input name -> (dimension name, minimum, maximum) of its first dimension.
        weights: checkpoint key -> tensor, where the module's own parameters are fake; converted
            to the parameter's type one at a time, when the file is written.
        blocks: repeat the middle one of the module's three blocks until there are so many.

    Returns:
        An ONNX IR model whose initializers still point at the parameters. Transposed weights are
        initializers named ``<parameter>.T``, evaluated when they are written.
    """
    shapes: dict[str, Any] = {
        name: [None] * len(value) if isinstance(value, list | tuple) else None
        for name, value in inputs.items()
    }
    for name, (dimension, low, high) in (dynamic or {}).items():
        shapes[name] = {0: torch.export.Dim(dimension, min=low, max=high)}
    quiet = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it reports that torchvision is not installed
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=inputs,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                dynamic_shapes=shapes if dynamic else None,
                input_names=flat_names(inputs),
                output_names=output_names,
                optimize=False,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    model = program.model
    _name_dynamic(model, dynamic or {})
    _upstream_names(model)
    for value, name in zip(model.graph.inputs, flat_names(inputs), strict=True):
        value.name = name  # the exporter renames an input that is also an output
    if blocks is not None:
        assert weights is not None
        _attach(model, weights)
        _optimize_structure(model)
        repeat_middle(model, blocks)
    if weights is not None:
        _attach(model, weights)
    _transpose_weights(model)
    if blocks is None:
        optimizer.optimize_ir(model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
    else:
        _fold(model)
    _drop_unused(model)
    _name_nodes(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    return model


def _name_dynamic(model: ir.Model, dynamic: dict[str, tuple[str, int, int]]) -> None:
    for value in model.graph.inputs:
        if value.name in dynamic:
            assert value.shape is not None, value
            value.shape = ir.Shape([dynamic[value.name][0], *value.shape[1:]])


def _attach(model: ir.Model, weights: Mapping[str, Tensor]) -> None:
    def read(name: str, dtype: torch.dtype) -> np.ndarray[Any, Any]:
        # The mapping is asked each time: it may make or read the tensor on demand.
        return weights[name].detach().to(dtype).numpy()

    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name in weights and tensor is not None:
            make = partial(read, name, _TORCH[tensor.dtype])
            value.const_value = lazy_tensor(make, tensor.dtype, list(tensor.shape), name)


def _optimize_structure(model: ir.Model) -> None:
    """Everything but what depends on weights: that differs from block to block.

    Matching patterns takes most of an export's time, and more than in proportion to the nodes.
    """
    weights = set(model.graph.initializers.values())

    def should_fold(node: ir.Node) -> bool | None:
        return False if weights & set(node.inputs) else None

    optimizer.optimize_ir(
        model,
        input_size_limit=_FOLD_LIMIT,
        output_size_limit=_FOLD_LIMIT,
        should_fold=should_fold,
    )


def _fold(model: ir.Model) -> None:
    """What `_optimize_structure` left: small weights that are cast, and what is now equal."""
    optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_FOLD_LIMIT,
        output_size_limit=_FOLD_LIMIT,
    )
    for tidy in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.NameFixPass(),
    ):
        tidy(model)


def _upstream(name: str) -> str:
    """A parameter or module path as the checkpoint spells it."""
    name = re.sub(r"^steps\.(\d+)(\.block)?", r"blocks.\1", name)
    return re.sub(r"^(dit|codec|text)\.", "", name)


def _upstream_names(model: ir.Model) -> None:
    """Name initializers by their checkpoint key."""
    graph = model.graph
    for old, value in list(graph.initializers.items()):
        name = _upstream(old)
        if name != old:
            del graph.initializers[old]
            value.name = name
            graph.initializers[name] = value


def _transpose_weights(model: ir.Model) -> None:
    """Replace Transpose(weight) by a lazily transposed initializer."""

    def transposed(tensor: ir.TensorProtocol, order: tuple[int, ...]) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(tensor.numpy().transpose(order))

    graph = model.graph
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0] is None:
            continue
        source = node.inputs[0]
        if source.name not in graph.initializers or source.const_value is None:
            continue
        tensor, order = source.const_value, tuple(node.attributes["perm"].as_ints())
        name = f"{source.name}.T"
        if name not in graph.initializers:
            shape = [tensor.shape[axis] for axis in order]
            make = partial(transposed, tensor, order)
            graph.initializers[name] = lazy_value(make, tensor.dtype, shape, name)
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[name])
        graph.remove(node, safe=True)


def _name_nodes(model: ir.Model) -> None:
    """Name nodes by the module they came from: blocks.7.self_attn.q/MatMul_93."""
    for i, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        path = max(scopes[:-1], key=len, default="")
        node.name = f"{_upstream(path) or 'step'}/{node.op_type}_{i}"
        node.metadata_props.clear()  # stack traces of the machine that exported


def _drop_unused(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
