"""The native libraries of this package: where they lie and the C signatures of their functions.

``libliveedit_kernels.so`` launches CUDA kernels on a stream; ``libliveedit_plugins.so`` is the same
with TensorRT's C++ adapters; ``libliveedit_host.so`` runs the same kernel bodies on the CPU, for
tests. All are optional parts of an installation.
"""

from __future__ import annotations

import ctypes
import importlib.resources
from pathlib import Path
from typing import Any

from liveedit.errors import BackendError

KERNEL_LIBRARY = "libliveedit_kernels.so"
PLUGIN_LIBRARY = "libliveedit_plugins.so"
HOST_LIBRARY = "libliveedit_host.so"

# The C interface's type numbers, by the bundle's dtype names.
DTYPE_CODES = {"float32": 0, "float16": 1, "bfloat16": 2}

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_FLOAT, _UINT = ctypes.c_float, ctypes.c_uint32
_SIGNATURES: dict[str, list[Any]] = {
    # x, scale, shift, keep_index, y, tokens, kept, width, dtype
    "mask_cache_gather": [*[_POINTER] * 5, _INT64, _INT64, _INT64, _INT],
    # x, update, store, gate, token_row, y, store_out, tokens, kept, width, dtype
    "mask_cache_scatter": [*[_POINTER] * 7, _INT64, _INT64, _INT64, _INT],
    # rgb uint8 [pixels, 3], table [256] real, planes [3, pixels] real, pixels, dtype
    "frames_in": [_POINTER, _POINTER, _POINTER, _INT64, _INT],
    # planes, rgb, pixels, low, scale, dtype: (value - low) * scale, rounded and clamped
    "frames_out": [_POINTER, _POINTER, _INT64, _FLOAT, _FLOAT, _INT],
    # key uint64 [seed, chunk], out [count] real, count, draw, dtype
    "noise": [_POINTER, _POINTER, _INT64, _UINT, _INT],
    # buffers: addresses [num_buffers] of [groups, rows, row_bytes]; plan int64 [src, dst, count];
    # num_buffers, groups, rows, row_bytes, most_rows, every buffer starts on 16 bytes
    "copy_rows": [_POINTER, _POINTER, _INT64, _INT64, _INT64, _INT64, _INT64, _INT],
    # edited, source [channels, pixels] real, out float32 [pixels], channels, pixels, dtype
    "importance": [_POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT],
}


def library_path(name: str) -> Path | None:
    """Absolute path of an installed native library, or None if this installation has none."""
    path = Path(str(importlib.resources.files("liveedit.runtime"))) / name
    return path.resolve() if path.is_file() else None


def load_kernels(path: Path) -> ctypes.CDLL:
    """Load a native library by absolute path and declare its functions.

    Functions are ``liveedit_NAME(..., stream)`` of the CUDA libraries, ``liveedit_host_NAME(...)``
    of the host library. They return 0 or a CUDA error number; see ``check_launch``.

    Raises:
        BackendError: the path is relative, is not a library, or lacks a function.
    """
    if not path.is_absolute():
        raise BackendError(f"kernel library {path} must be given by its absolute path")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"kernel library {path} cannot be loaded: {error}. Install liveedit-trt again with a "
            "CUDA toolkit: LIVEEDIT_PLUGINS=ON in CMake's options."
        ) from None
    host = path.name == HOST_LIBRARY
    for name, arguments in _SIGNATURES.items():
        symbol = f"liveedit_host_{name}" if host else f"liveedit_{name}"
        try:
            function = getattr(library, symbol)
        except AttributeError:
            raise BackendError(
                f"kernel library {path} has no function {symbol}; it is of another version. "
                "Install liveedit-trt again."
            ) from None
        function.argtypes = arguments if host else [*arguments, _POINTER]
        function.restype = _INT
    return library


def check_launch(status: int, kernel: str) -> None:
    """Raise what a launcher returned.

    Raises:
        BackendError: ``status`` is not 0.
    """
    if status:
        raise BackendError(f"kernel {kernel} was not launched: CUDA error {status}")
