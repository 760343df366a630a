"""Memory of ours as a DLPack tensor, for libraries that take nothing else.

The capsule holds its owner until the library that took it lets go.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

UINT = 1  # DLPack's code of unsigned integers
_NAME = b"dltensor"  # a library that takes the tensor renames the capsule


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
        address, *device, len(shape), UINT, 8, 1, ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    )
    managed.deleter = _DELETER
    key = ctypes.addressof(managed)
    _alive[key] = (managed, sizes, owner)
    return _api.PyCapsule_New(key, _NAME, _DESTRUCTOR)
