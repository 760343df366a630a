"""NV12 in and out: the kernels' bodies on the CPU against numpy, bit for bit."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from liveedit.runtime.kernels import DTYPE_CODES
from liveedit.runtime.nv12 import ColorMatrix, Matrix, nv12_to_rgb, rgb_to_nv12

Array = NDArray[Any]
REAL = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
COLORS: list[tuple[Matrix, bool]] = [
    ("bt601", False),
    ("bt601", True),
    ("bt709", False),
    ("bt709", True),
]
# frames, height, width, bytes of a row: 16-byte and scalar paths, rows with padding
SIZES = [(1, 2, 2, 2), (3, 6, 10, 14), (2, 4, 32, 32), (2, 18, 48, 64)]


def surfaces(rng: np.random.Generator, n: int, h: int, pitch: int) -> Array:
    """Frames as a decoder lays them out: Y rows, then UV rows, one after the other."""
    return rng.integers(0, 256, (n, h + h // 2, pitch), np.uint8)


@pytest.mark.parametrize(("matrix", "full_range"), COLORS)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("n", "h", "w", "pitch"), SIZES)
def test_nv12_in(
    host_library: ctypes.CDLL,
    n: int,
    h: int,
    w: int,
    pitch: int,
    dtype: str,
    matrix: Matrix,
    full_range: bool,
) -> None:
    frames = surfaces(np.random.default_rng(w), n, h, pitch)
    table = (np.arange(256) / 127.5 - 1).astype(REAL[dtype])
    room = np.full((3, n + 2, h, w), 7, REAL[dtype])
    status = host_library.liveedit_host_nv12_in(
        frames.ctypes.data,
        frames[:, h:].ctypes.data,
        table.ctypes.data,
        room[:, 1:].ctypes.data,
        n,
        h,
        w,
        pitch,
        frames[0].nbytes,
        (n + 2) * h * w,
        matrix == "bt709",
        full_range,
        DTYPE_CODES[dtype],
    )
    assert status == 0
    rgb = nv12_to_rgb(frames[..., :w], ColorMatrix.of(matrix, full_range=full_range))
    np.testing.assert_array_equal(room[:, 1:-1], table[rgb].transpose(3, 0, 1, 2))
    assert (room[:, [0, -1]] == 7).all()


@pytest.mark.parametrize(("matrix", "full_range"), COLORS)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("n", "h", "w", "pitch"), SIZES)
def test_nv12_out(
    host_library: ctypes.CDLL,
    n: int,
    h: int,
    w: int,
    pitch: int,
    dtype: str,
    matrix: Matrix,
    full_range: bool,
) -> None:
    rng = np.random.default_rng(w)
    planes = rng.uniform(-1.1, 1.1, (3, n, h, w)).astype(REAL[dtype])
    planes.reshape(-1)[:3] = np.nan, np.inf, -np.inf
    rgb = np.empty((n, h, w, 3), np.uint8)
    code = DTYPE_CODES[dtype]
    scaling = (-1.0, 127.5)
    pixels = n * h * w
    addresses = (planes.ctypes.data, rgb.ctypes.data)
    assert host_library.liveedit_host_frames_out(*addresses, pixels, *scaling, code) == 0
    out = np.full((n, h + h // 2, pitch), 9, np.uint8)
    status = host_library.liveedit_host_nv12_out(
        planes.ctypes.data,
        out.ctypes.data,
        out[:, h:].ctypes.data,
        n,
        h,
        w,
        pitch,
        out[0].nbytes,
        pixels,
        *scaling,
        matrix == "bt709",
        full_range,
        code,
    )
    assert status == 0
    want = rgb_to_nv12(rgb, ColorMatrix.of(matrix, full_range=full_range))
    np.testing.assert_array_equal(out[..., :w], want)
    assert (out[..., w:] == 9).all()


def test_impossible_frames_are_refused(host_library: ctypes.CDLL) -> None:
    invalid = 1
    for n, h, w, pitch, frame_stride, plane_stride, address in (
        (1, 3, 4, 4, 24, 12, 16),
        (1, 4, 5, 6, 24, 20, 16),
        (1, 4, 4, 2, 24, 16, 16),
        (1, 4, 4, 5, 24, 16, 16),
        (2, 4, 4, 4, 24, 31, 16),
        (2, 4, 4, 4, 25, 32, 16),
        (2, 4, 4, 4, 24, 32, 17),
        (-1, 4, 4, 4, 24, 16, 16),
    ):
        sizes = (n, h, w, pitch, frame_stride, plane_stride)
        given = (16, address, None, None)
        assert host_library.liveedit_host_nv12_in(*given, *sizes, 1, 0, 0) == invalid
        wanted = (None, address, 16)
        assert host_library.liveedit_host_nv12_out(*wanted, *sizes, 0, 1, 1, 0, 0) == invalid
