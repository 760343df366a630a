"""DLPack capsules: memory of ours for other libraries, and theirs for us.

A tensor is held by who took its capsule, until they call its deleter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13  # DLPack's kinds of memory
_TYPES = ("int", "uint", "float", "opaque", "bfloat", "complex", "bool")  # by DLPack's code
_NAME, _TAKEN_NAME = b"dltensor", b"used_dltensor"  # who takes the tensor renames the capsule


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_api.PyCapsule_IsValid.restype = ctypes.c_int
_api.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.c_void_p, ctypes.c_char_p)

# What a tensor needs to stay, by its address: itself, its shape, its owner.
_alive: dict[int, tuple[Any, ...]] = {}


def _delete(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


def _destroy(capsule: int) -> None:
    """The capsule is gone; the tensor goes with it if nobody took it."""
    if _api.PyCapsule_IsValid(capsule, _NAME):
        _alive.pop(int(_api.PyCapsule_GetPointer(capsule, _NAME)), None)


_DELETER, _DESTRUCTOR = _Deleter(_delete), _Destructor(_destroy)


def capsule_of(address: int, shape: Sequence[int], device: tuple[int, int], owner: object) -> Any:
    """A DLPack capsule of uint8 [*shape], contiguous.

    Args:
        device: DLPack's kind and number of where ``address`` is.
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed()
    managed.tensor = _Tensor(
        address,
        *device,
        len(shape),
        _TYPES.index("uint"),
        8,
        1,
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
    )
    managed.deleter = _DELETER
    key = ctypes.addressof(managed)
    _alive[key] = (managed, sizes, owner)
    return _api.PyCapsule_New(key, _NAME, _DESTRUCTOR)


class TakenTensor:
    """Another library's tensor, taken out of its capsule. It is given back with this object."""

    def __init__(self, capsule: Any) -> None:
        """``capsule``: of ``__dlpack__`` without ``max_version``, not taken before."""
        where = int(_api.PyCapsule_GetPointer(id(capsule), _NAME))
        self._managed = _Managed.from_address(where)
        _api.PyCapsule_SetName(id(capsule), _TAKEN_NAME)
        tensor = self._managed.tensor
        self.shape: tuple[int, ...] = tuple(tensor.shape[: tensor.ndim])
        # Counted in elements; None: contiguous.
        self.strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
        kind = _TYPES[tensor.code] if tensor.code < len(_TYPES) else f"type {tensor.code} of "
        lanes = f"x{tensor.lanes}" if tensor.lanes != 1 else ""
        self.dtype = f"{kind}{tensor.bits}{lanes}"
        self.address = (tensor.data or 0) + tensor.byte_offset

    def __del__(self) -> None:
        managed = getattr(self, "_managed", None)
        if managed is not None and managed.deleter:
            managed.deleter(managed)
