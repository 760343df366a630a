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
# What each does and the shapes of its arrays: plugins/launchers.h.
_SIGNATURES: dict[str, list[Any]] = {
    # x, scale, shift, keep_index, y, tokens, kept, width, dtype
    "mask_cache_gather": [*[_POINTER] * 5, _INT64, _INT64, _INT64, _INT],
    # x, update, store, gate, token_row, y, store_out, tokens, kept, width, dtype
    "mask_cache_scatter": [*[_POINTER] * 7, _INT64, _INT64, _INT64, _INT],
    # rgb, table, planes, pixels, dtype
    "frames_in": [_POINTER, _POINTER, _POINTER, _INT64, _INT],
    # planes, rgb, pixels, low, scale, dtype
    "frames_out": [_POINTER, _POINTER, _INT64, _FLOAT, _FLOAT, _INT],
    # y, uv, table, planes, frames, height, width, pitch, frame_stride, plane_stride, bt709,
    # full_range, dtype
    "nv12_in": [*[_POINTER] * 4, *[_INT64] * 6, _INT, _INT, _INT],
    # planes, y, uv, frames, height, width, pitch, frame_stride, plane_stride, low, scale, bt709,
    # full_range, dtype
    "nv12_out": [*[_POINTER] * 3, *[_INT64] * 6, _FLOAT, _FLOAT, _INT, _INT, _INT],
    # control, counts, write_index, kv_full, kv_pruned, non_finite, slots, sink_slots,
    # rows_per_slot, frames
    "begin_chunk": [*[_POINTER] * 6, *[_INT64] * 4],
    # key, out, count, draw, dtype
    "noise": [_POINTER, _POINTER, _INT64, _UINT, _INT],
    # first_frame, frequency, cos, sin, frames, tokens, pairs, columns
    "rope_time": [*[_POINTER] * 4, *[_INT64] * 4],
    # buffers, plan, num_buffers, groups, rows, row_bytes, most_rows, aligned
    "copy_rows": [_POINTER, _POINTER, *[_INT64] * 5, _INT],
    # x, count, flag, dtype
    "non_finite": [_POINTER, _INT64, _POINTER, _INT],
    # x0, last_good, source, bytes, flag, has_good, outcome, host_outcome, policy
    "replace": [_POINTER, _POINTER, _POINTER, _INT64, *[_POINTER] * 4, _INT],
    # edited, source, scratch, importance, peak, host_peak, channels, pixels, bfloat16_steps, dtype
    "importance": [*[_POINTER] * 6, _INT64, _INT64, _INT, _INT],
    # importance, full, scratch, keep_index, token_row, kept, counts, host_counts, frames, height,
    # width, mode, keep, bucket, budget
    "select_tokens": [*[_POINTER] * 8, *[_INT64] * 3, _INT, *[_INT64] * 3],
}
# Bytes of scratch, from sizes alone; the same name in every library.
_SIZES: dict[str, list[Any]] = {
    "importance_scratch": [_INT64],  # pixels
    "select_scratch": [_INT64, _INT64, _INT64],  # frames, height, width
}


def library_path(name: str) -> Path | None:
    """Absolute path of an installed native library, or None if this installation has none."""
    path = Path(str(importlib.resources.files("liveedit.runtime"))) / name
    return path.resolve() if path.is_file() else None


def load_kernels(path: Path) -> ctypes.CDLL:
    """Load a native library by absolute path and declare its functions.

    Functions are ``liveedit_NAME(..., stream)`` of the CUDA libraries, ``liveedit_host_NAME(...)``
    of the host library. They return 0 or a CUDA error number; see ``check_launch``. Both have
    ``liveedit_importance_scratch`` and ``liveedit_select_scratch``, which return bytes.

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
        function = _function(library, path, f"liveedit_host_{name}" if host else f"liveedit_{name}")
        function.argtypes = arguments if host else [*arguments, _POINTER]
        function.restype = _INT
    for name, arguments in _SIZES.items():
        function = _function(library, path, f"liveedit_{name}")
        function.argtypes = arguments
        function.restype = _INT64
    return library


def _function(library: ctypes.CDLL, path: Path, symbol: str) -> Any:
    try:
        return getattr(library, symbol)
    except AttributeError:
        raise BackendError(
            f"kernel library {path} has no function {symbol}; it is of another version. "
            "Install liveedit-trt again."
        ) from None


def check_launch(status: int, kernel: str) -> None:
    """Raise what a launcher returned.

    Raises:
        BackendError: ``status`` is not 0.
    """
    if status:
        raise BackendError(f"kernel {kernel} was not launched: CUDA error {status}")
