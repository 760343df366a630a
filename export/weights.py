"""External weight files shared by the graphs of a bundle: every tensor is stored once."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from liveedit.export.functions import DOMAIN, FUNCTIONS, add_functions
from liveedit.export.lazy import lazy_value

_ALIGNMENT = 4096  # so that a runtime can map the file and hand out aligned views
_INLINE_BYTES = 1024


class WeightFile:
    """Append-only file of tensors, deduplicated by content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._known: dict[tuple[str, int], int] = {}

    def add(self, data: bytes | memoryview) -> tuple[int, int]:
        """Store ``data`` unless it is already here. Returns its offset and length in bytes."""
        key = (hashlib.sha256(data).hexdigest(), len(data))
        if key not in self._known:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._known[key] = self._file.tell()
            self._file.write(data)
        return self._known[key], len(data)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def weight_bytes(model: ir.Model) -> int:
    """What the initializers of a graph take."""
    values = model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


def half_storage(model: ir.Model) -> None:
    """Store float32 weights as float16 with a Cast back: half the file, the same graph otherwise.

    Runtimes fold the Cast when they load the graph, so passes still compute in float32.
    """

    def halved(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
        return tensor.numpy().astype(np.float16)

    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= _INLINE_BYTES:
            continue
        half, shape = f"{name}.half", list(tensor.shape)
        stored = lazy_value(partial(halved, tensor), ir.DataType.FLOAT16, shape, half)
        del graph.initializers[name]
        graph.initializers[half] = stored
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
        cast.outputs[0].name = name
        cast.outputs[0].shape = ir.Shape(tensor.shape.numpy())
        cast.outputs[0].type = value.type
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        graph.insert_before(graph[0], cast)


def save(model: ir.Model, path: Path, weights: WeightFile, *, with_data: bool = True) -> None:
    """Write ``model`` with its larger initializers in ``weights``, beside it, and its functions.

    ``with_data`` False names the weight file and each length but stores nothing in it.
    """
    large = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _INLINE_BYTES:
            continue
        offset, length = weights.add(tensor.tobytes()) if with_data else (0, tensor.nbytes)
        large.append((value, tensor))
        value.const_value = ir.ExternalTensor(
            weights.path.name,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=path.parent,
        )
    proto = ir.to_proto(model)
    for value, tensor in large:
        value.const_value = tensor
    custom = {n.op_type for n in proto.graph.node if n.domain == DOMAIN}
    add_functions(proto, sorted(custom & set(FUNCTIONS)))
    if not custom:  # an unused import of a private domain is refused by TensorRT's parser
        kept = [o for o in proto.opset_import if o.domain != DOMAIN]
        del proto.opset_import[:]
        proto.opset_import.extend(kept)
    onnx.save(proto, path)
