"""The linear layers of an exported graph: found by their weight, chosen by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir

from liveedit.config import DiTConfig
from liveedit.errors import UsageError

# Weights are transposed initializers called <key>.weight.T, stored as float16 with a Cast or not.
_WEIGHT = re.compile(r"(?P<layer>blocks\.\d+\..+)\.weight\.T(\.\w+)*")
_HIGH_ENDS = 3  # blocks at each end of a deep network that stay in high precision
_SHALLOW = 12  # up to so many blocks no block is an end of its own: measure instead


@dataclass(frozen=True)
class Linear:
    """``y = x @ weight``; ``weight`` is [in, out]."""

    name: str  # as in the checkpoint, without ".weight": blocks.3.self_attn.q
    node: ir.Node

    @property
    def x(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight(self) -> ir.Value:
        value = self.node.inputs[1]
        assert value is not None
        return value


def stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The constant behind a value: an initializer, or one that is cast; None for anything else."""
    node = value.producer()
    if node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value.const_value


def constant(value: ir.Value) -> np.ndarray[Any, Any]:
    """The float32 content of a constant value."""
    tensor = stored(value)
    assert tensor is not None, value
    return tensor.numpy().astype(np.float32)


def linears(model: ir.Model) -> dict[str, Linear]:
    """Every linear layer of the transformer blocks, in the order of the graph."""
    found = {}
    for node in model.graph:
        if node.op_type != "MatMul":
            continue
        weight = node.inputs[1]
        assert weight is not None
        match = _WEIGHT.fullmatch(weight.name or "")
        if match and stored(weight) is not None:
            found[match["layer"]] = Linear(match["layer"], node)
    return found


def choose(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Layers whose name matches one of the patterns, such as ``blocks.*.ffn.0``.

    Raises:
        UsageError: a pattern matches nothing.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise UsageError(
                f"no linear layer matches {pattern!r}; there are {', '.join(names[:8])}, ... "
                f"({len(names)} in all, blocks.0 to {names[-1].rsplit('.', 2)[0]})"
            )
    return tuple(n for n in names if any(fnmatchcase(n, p) for p in patterns))


def default_layers(names: Iterable[str], dit: DiTConfig) -> tuple[str, ...]:
    """Layers worth quantising before anything is measured.

    In a deep network the first and last three blocks and every FFN down-projection stay in high
    precision: their inputs have the outliers. A shallow one gives all of them to the search.
    """
    names = tuple(names)
    if dit.num_layers <= _SHALLOW:
        return names
    low, high = _HIGH_ENDS, dit.num_layers - _HIGH_ENDS
    return tuple(n for n in names if low <= int(n.split(".")[1]) < high and not n.endswith("ffn.2"))
