"""Frames, noise, KV rows and importance: the kernels' bodies on the CPU against the host loop."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from liveedit.runtime.kernels import DTYPE_CODES
from liveedit.runtime.mask_cache import mean_square
from liveedit.runtime.noise import normal
from liveedit.runtime.onnx_backend import OnnxBackend

Array = NDArray[Any]
REAL = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CPU_TYPES = ["float32", "float16"]  # of the ONNX Runtime backend, the oracle of frames
SIZES = [(1, 2, 4), (3, 5, 7), (2, 16, 24)]  # frames, height, width: 16-byte and scalar paths


def frames_of(size: tuple[int, int, int]) -> Array:
    frames = np.random.default_rng(size[1]).integers(0, 256, (*size, 3), np.uint8)
    frames.reshape(-1)[:2] = 0, 255
    return frames


@pytest.mark.parametrize("pixel_range", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("dtype", CPU_TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_frames_in_equals_the_cpu_backend(
    host_library: ctypes.CDLL,
    size: tuple[int, int, int],
    dtype: Any,
    pixel_range: tuple[float, float],
) -> None:
    backend = OnnxBackend()
    backend.alloc("every", dtype, (1, 3, 256, 1, 1))
    backend.alloc("frames", dtype, (1, 3, *size))
    every = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(256, 1, 1, 3)
    backend.write_frames("every", every, pixel_range)
    table = backend.read("every")[0, 0, :, 0, 0].copy()
    frames = frames_of(size)
    backend.write_frames("frames", frames, pixel_range)
    planes = np.full((1, 3, *size), 7, REAL[dtype])
    pixels = planes.size // 3
    addresses = (frames.ctypes.data, table.ctypes.data, planes.ctypes.data)
    assert host_library.liveedit_host_frames_in(*addresses, pixels, DTYPE_CODES[dtype]) == 0
    np.testing.assert_array_equal(planes, backend.read("frames"))


@pytest.mark.parametrize("pixel_range", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("dtype", CPU_TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_frames_out_equals_the_cpu_backend(
    host_library: ctypes.CDLL,
    size: tuple[int, int, int],
    dtype: Any,
    pixel_range: tuple[float, float],
) -> None:
    low, high = pixel_range
    values = np.random.default_rng(size[2]).uniform(low - 0.2, high + 0.2, (1, 3, *size))
    planes = values.astype(REAL[dtype])
    planes.reshape(-1)[:6] = np.nan, np.inf, -np.inf, low, high, (low + high) / 2
    backend = OnnxBackend()
    backend.alloc("frames", dtype, planes.shape)
    backend.write("frames", planes)
    want = np.empty((*size, 3), np.uint8)
    backend.read_frames("frames", want, pixel_range)
    got = np.full_like(want, 7)
    status = host_library.liveedit_host_frames_out(
        planes.ctypes.data,
        got.ctypes.data,
        planes.size // 3,
        low,
        255 / (high - low),
        DTYPE_CODES[dtype],
    )
    assert status == 0
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("count", "seed", "chunk", "draw"),
    [(1, 0, 0, 0), (4099, 2**63 + 5, 2**33 + 1, 3), (6, 2**64 - 1, 2**64 - 1, 2**32 - 1)],
)
def test_noise_is_that_of_the_cpu(
    host_library: ctypes.CDLL, count: int, seed: int, chunk: int, draw: int, dtype: str
) -> None:
    """Philox's words are equal; log and cos of two mathematics libraries may differ in rounding."""
    key = np.array([seed, chunk], np.uint64)
    room = np.full(count + 4, 7, REAL[dtype])
    pointers = (key.ctypes.data, room.ctypes.data)
    assert host_library.liveedit_host_noise(*pointers, count, draw, DTYPE_CODES[dtype]) == 0
    want = normal(count, seed=seed, chunk=chunk, draw=draw).astype(REAL[dtype])
    unequal = room[:count] != want
    assert unequal.mean() < 1e-3
    np.testing.assert_allclose(room[:count].astype(np.float32), want.astype(np.float32), rtol=1e-2)
    assert (room[count:] == 7).all()


@pytest.mark.parametrize("row_bytes", [16, 10])
@pytest.mark.parametrize("plan", [(6, 2, 3), (0, 3, 2), (4, 0, 0)])
def test_copy_rows_moves_every_buffer(
    host_library: ctypes.CDLL, plan: tuple[int, int, int], row_bytes: int
) -> None:
    groups, rows, most_rows = 3, 9, 3
    rng = np.random.default_rng(row_bytes)
    buffers = [rng.integers(0, 256, (groups, rows, row_bytes), np.uint8) for _ in range(4)]
    want = [b.copy() for b in buffers]
    src, dst, count = plan
    for array in want:
        array[:, dst : dst + count] = array[:, src : src + count]
    addresses = np.array([b.ctypes.data for b in buffers], np.uint64)
    moves = np.array(plan, np.int64)
    status = host_library.liveedit_host_copy_rows(
        addresses.ctypes.data,
        moves.ctypes.data,
        len(buffers),
        groups,
        rows,
        row_bytes,
        most_rows,
        all(b.ctypes.data % 16 == 0 for b in buffers),
    )
    assert status == 0
    for array, expected in zip(buffers, want, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("dtype", CPU_TYPES)
def test_importance_equals_the_mask_caches(host_library: ctypes.CDLL, dtype: str) -> None:
    rng = np.random.default_rng(0)
    edited, source = rng.normal(size=(2, 1, 16, 3, 6, 10)).astype(REAL[dtype])
    got = np.empty((3, 6, 10), np.float32)
    pointers = (edited.ctypes.data, source.ctypes.data, got.ctypes.data)
    assert host_library.liveedit_host_importance(*pointers, 16, got.size, DTYPE_CODES[dtype]) == 0
    np.testing.assert_array_equal(got, mean_square(edited, source))


def test_bad_arguments_are_refused(host_library: ctypes.CDLL) -> None:
    invalid = 1
    assert host_library.liveedit_host_frames_in(None, None, None, 1, 3) == invalid
    assert host_library.liveedit_host_frames_out(None, None, -1, 0, 1, 0) == invalid
    assert host_library.liveedit_host_noise(None, None, -1, 0, 0) == invalid
    assert host_library.liveedit_host_copy_rows(None, None, 1, 1, -1, 1, 1, 0) == invalid
    assert host_library.liveedit_host_importance(None, None, None, 0, 1, 0) == invalid
