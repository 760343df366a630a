"""ONNX IR tensors that are made when they are written, so that no second copy of a weight lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


def lazy_tensor(
    make: Callable[[], np.ndarray[Any, Any]], dtype: ir.DataType, shape: Sequence[Any], name: str
) -> ir.LazyTensor:
    """A tensor of a known type and shape; ``make`` is called each time its data is asked for."""
    return ir.LazyTensor(
        lambda: ir.tensor(make(), dtype=dtype), dtype=dtype, shape=ir.Shape(list(shape)), name=name
    )


def lazy_value(
    make: Callable[[], np.ndarray[Any, Any]], dtype: ir.DataType, shape: Sequence[Any], name: str
) -> ir.Value:
    """An initializer value around `lazy_tensor`."""
    return ir.Value(
        name=name,
        shape=ir.Shape(list(shape)),
        type=ir.TensorType(dtype),
        const_value=lazy_tensor(make, dtype, shape, name),
    )
