"""The kernels' bodies, run over the grid on the CPU, against the torch operators, bit for bit."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from liveedit.models.ops import mask_cache_gather, mask_cache_scatter
from liveedit.runtime.kernels import DTYPE_CODES

Array = NDArray[Any]
REAL = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def bits(array: Array) -> Array:
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def to_torch(array: Array, dtype: str) -> torch.Tensor:
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: torch.Tensor, dtype: str) -> Array:
    if dtype == "bfloat16":
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    out: Array = tensor.numpy()
    return out


def offset_copy(array: Array) -> Array:
    """The same values at an address that is not a multiple of 16."""
    room = np.zeros(array.size + 16, array.dtype)
    start = next(i for i in range(16) if room[i:].ctypes.data % 16)
    out = room[start : start + array.size].reshape(array.shape)
    out[...] = array
    return out


def gather(
    library: ctypes.CDLL, x: Array, scale: Array, shift: Array, keep_index: Array, dtype: str
) -> Array:
    _, tokens, width = x.shape
    y = np.full((1, len(keep_index), width), 7, x.dtype)
    status = library.liveedit_host_mask_cache_gather(
        *(a.ctypes.data for a in (x, scale, shift, keep_index, y)),
        tokens,
        len(keep_index),
        width,
        DTYPE_CODES[dtype],
    )
    assert status == 0
    return y


def scatter(
    library: ctypes.CDLL,
    x: Array,
    update: Array,
    store: Array,
    gate: Array,
    token_row: Array,
    dtype: str,
    *,
    in_place: bool,
) -> tuple[Array, Array]:
    _, tokens, width = x.shape
    y = np.full_like(x, 7)
    store_out = store if in_place else np.full_like(x, 7)
    status = library.liveedit_host_mask_cache_scatter(
        *(a.ctypes.data for a in (x, update, store, gate, token_row, y, store_out)),
        tokens,
        update.shape[1],
        width,
        DTYPE_CODES[dtype],
    )
    assert status == 0
    return y, store_out


def real(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Normal values over many magnitudes: small products fall into the subnormals of a half."""
    spread = 2.0 ** rng.integers(-20, 8, shape)
    return (rng.normal(size=shape) * spread).astype(REAL[dtype])


# Widths: 16-byte path with one access, a whole warp and more than a block's 512 threads; scalar
# path by an odd width. Rows: below, at and above the four rows of a block.
SHAPES = [(1, 1, 8), (4, 3, 24), (9, 5, 7), (13, 13, 1), (6, 2, 4104), (5, 4, 1537), (131, 66, 40)]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("tokens", "kept", "width"), SHAPES)
def test_gather_bits(
    host_library: ctypes.CDLL, tokens: int, kept: int, width: int, dtype: str, aligned: bool
) -> None:
    rng = np.random.default_rng(width)
    x = real(rng, (1, tokens, width), dtype)
    scale, shift = rng.normal(size=(2, 1, 1, width)).astype(np.float32)
    keep_index = rng.permutation(tokens)[:kept].astype(np.int32)
    outside = np.array([-1, tokens, -tokens, 2**31 - 1, -(2**31)], np.int32)
    keep_index = np.concatenate([keep_index, outside])
    if not aligned:
        x, scale = offset_copy(x), offset_copy(scale)
    got = gather(host_library, x, scale, shift, keep_index, dtype)
    want = mask_cache_gather(
        to_torch(x, dtype), *(torch.from_numpy(a) for a in (scale, shift, keep_index))
    )
    np.testing.assert_array_equal(bits(got), bits(from_torch(want, dtype)))
    assert not bits(got)[0, kept:].any()


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("tokens", "kept", "width"), SHAPES)
def test_scatter_bits(
    host_library: ctypes.CDLL,
    tokens: int,
    kept: int,
    width: int,
    dtype: str,
    aligned: bool,
    in_place: bool,
) -> None:
    rng = np.random.default_rng(width)
    x, store = (real(rng, (1, tokens, width), dtype) for _ in range(2))
    update = real(rng, (1, kept, width), dtype)
    gate = rng.normal(size=(1, 1, width)).astype(np.float32)
    token_row = rng.integers(-2, kept + 2, tokens).astype(np.int32)
    token_row[-3:] = [kept, 2**31 - 1, -(2**31)][: len(token_row[-3:])]
    if not aligned:
        x, store = offset_copy(x), offset_copy(store)
    want = mask_cache_scatter(
        *(to_torch(a, dtype) for a in (x, update, store.copy())),
        torch.from_numpy(gate),
        torch.from_numpy(token_row),
    )
    got = scatter(host_library, x, update, store, gate, token_row, dtype, in_place=in_place)
    for out, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(bits(out), bits(from_torch(expected, dtype)))


def test_half_conversions_are_exact(host_library: ctypes.CDLL) -> None:
    """x * 1 - x is zero for every finite half, and x * 1 - 0 gives back its bits."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(1, 1, -1)
    zero = np.zeros(every.shape, np.float32)
    first = np.zeros(1, np.int32)
    difference = gather(host_library, every, zero, -every.astype(np.float32), first, "float16")
    assert not difference.any()
    same = gather(host_library, every, zero, -zero, first, "float16")
    np.testing.assert_array_equal(bits(same), bits(every))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_to_nearest_even(host_library: ctypes.CDLL, dtype: str) -> None:
    """Every value of the type, its midpoint to the next one, and one float beside each of them."""
    every = np.arange(0x7F80 if dtype == "bfloat16" else 0x7C00, dtype=np.uint16)
    exact = every.view(REAL[dtype]).astype(np.float64)
    beyond = 2 * exact[-1] - exact[-2]
    with np.errstate(over="ignore"):
        middle = ((exact + np.append(exact[1:], beyond)) / 2).astype(np.float32)
    points = np.concatenate([exact.astype(np.float32), middle])
    points = np.concatenate([np.nextafter(points, -np.inf), points, np.nextafter(points, np.inf)])
    gate = np.concatenate([points, -points, [np.inf, -np.inf]]).astype(np.float32).reshape(1, 1, -1)
    x = np.full(gate.shape, -0.0, REAL[dtype])  # -0 + v is v, its sign included
    one = np.ones(gate.shape, REAL[dtype])
    row = np.zeros(1, np.int32)
    y, _ = scatter(host_library, x, one, one.copy(), gate, row, dtype, in_place=True)
    with np.errstate(over="ignore"):
        want = gate.astype(REAL[dtype])
    np.testing.assert_array_equal(bits(y), bits(want))


@pytest.mark.parametrize("dtype", REAL)
def test_nan_has_the_device_bits_and_the_store_is_copied_raw(
    host_library: ctypes.CDLL, dtype: str
) -> None:
    payload = np.full((1, 2, 8), -1, np.int32 if dtype == "float32" else np.int16).view(REAL[dtype])
    one = np.ones((1, 2, 8), REAL[dtype])
    gate = np.ones((1, 1, 8), np.float32)
    row = np.array([0, -1], np.int32)
    y, store = scatter(host_library, one, payload, one.copy(), gate, row, dtype, in_place=True)
    np.testing.assert_array_equal(bits(store[:, :1]), bits(payload[:, :1]))
    np.testing.assert_array_equal(store[:, 1:], one[:, 1:])
    assert (bits(y)[0, 0] == (0x7FFFFFFF if dtype == "float32" else 0x7FFF)).all()


def test_nothing_kept_and_nothing_at_all(host_library: ctypes.CDLL) -> None:
    x = np.ones((1, 3, 8), np.float32)
    gate = np.full((1, 1, 8), 2, np.float32)
    none = np.zeros((1, 0, 8), np.float32)
    rows = np.zeros(3, np.int32)
    y, store = scatter(host_library, x, none, x.copy(), gate, rows, "float32", in_place=True)
    assert (y == 3).all()
    assert (store == 1).all()
    assert gather(host_library, x, gate, gate, rows[:0], "float32").shape == (1, 0, 8)
    assert gather(host_library, x[:, :0], gate, gate, rows, "float32").sum() == 0


@pytest.mark.parametrize(("tokens", "dtype"), [(-1, 0), (1, 3), (1, -1)])
def test_launcher_refuses_bad_arguments(host_library: ctypes.CDLL, tokens: int, dtype: int) -> None:
    assert host_library.liveedit_host_mask_cache_gather(*[None] * 5, tokens, 1, 8, dtype) == 1
    assert host_library.liveedit_host_mask_cache_scatter(*[None] * 7, tokens, 1, 8, dtype) == 1
