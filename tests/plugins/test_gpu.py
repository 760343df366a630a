"""The kernels on a GPU against their host twin, bit for bit."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from liveedit.runtime.kernels import DTYPE_CODES, KERNEL_LIBRARY, load_kernels

Array = NDArray[Any]
REAL = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

pytestmark = pytest.mark.gpu


class Device:
    """Copies of numpy arrays in device memory, freed at the end."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.held: list[int] = []

    def check(self, result: tuple[Any, ...]) -> Any:
        assert int(result[0]) == 0, result
        return result[1] if len(result) > 1 else None

    def put(self, array: Array) -> int:
        address = int(self.check(self.runtime.cudaMalloc(max(array.nbytes, 1))))
        self.held.append(address)
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.check(self.runtime.cudaMemcpy(address, array.ctypes.data, array.nbytes, kind))
        return address

    def get(self, address: int, like: Array) -> Array:
        out = np.empty_like(like)
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.check(self.runtime.cudaMemcpy(out.ctypes.data, address, out.nbytes, kind))
        return out

    def free(self) -> None:
        for address in self.held:
            self.check(self.runtime.cudaFree(address))


@pytest.fixture
def device() -> Iterator[Device]:
    required = os.environ.get("LIVEEDIT_REQUIRE_GPU") == "1"
    try:
        from cuda.bindings import runtime
    except ImportError:
        assert not required, "LIVEEDIT_REQUIRE_GPU=1, but cuda-python is not installed"
        pytest.skip("cuda-python is not installed")
    status, count = runtime.cudaGetDeviceCount()
    if int(status) or not count:
        assert not required, f"LIVEEDIT_REQUIRE_GPU=1, but CUDA says {status}"
        pytest.skip("no GPU")
    held = Device(runtime)
    yield held
    held.free()


@pytest.fixture
def kernels(device: Device, request: pytest.FixtureRequest) -> ctypes.CDLL:
    """Asked for by name, so that nothing is compiled where the device fixture skips."""
    build: Path = request.getfixturevalue("cuda_build")
    return load_kernels(build / KERNEL_LIBRARY)


@pytest.fixture
def host(device: Device, request: pytest.FixtureRequest) -> ctypes.CDLL:
    library: ctypes.CDLL = request.getfixturevalue("host_library")
    return library


def bits(array: Array) -> Array:
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def any_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Every kind of value: subnormal, infinite, NaN."""
    size = np.dtype(REAL[dtype]).itemsize
    words = rng.integers(0, 2 ** (8 * size), shape, np.uint64).astype(f"u{size}")
    return words.view(REAL[dtype])


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("tokens", "kept", "width"), [(9, 5, 7), (131, 66, 40), (4680, 1170, 1536)]
)
def test_gather(
    device: Device,
    kernels: ctypes.CDLL,
    host: ctypes.CDLL,
    tokens: int,
    kept: int,
    width: int,
    dtype: str,
) -> None:
    rng = np.random.default_rng(width)
    x = any_bits(rng, (tokens, width), dtype)
    scale, shift = any_bits(rng, (2, width), "float32")
    index = rng.integers(-2, tokens + 2, kept).astype(np.int32)
    y = np.full((kept, width), 7).astype(REAL[dtype])
    addresses = [device.put(a) for a in (x, scale, shift, index, y)]
    sizes = (tokens, kept, width, DTYPE_CODES[dtype])
    assert kernels.liveedit_mask_cache_gather(*addresses, *sizes, None) == 0
    got = device.get(addresses[-1], y)
    pointers = [a.ctypes.data for a in (x, scale, shift, index, y)]
    assert host.liveedit_host_mask_cache_gather(*pointers, *sizes) == 0
    np.testing.assert_array_equal(bits(got), bits(y))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("tokens", "kept", "width"), [(9, 5, 7), (131, 66, 40), (4680, 1170, 1536)]
)
def test_scatter(
    device: Device,
    kernels: ctypes.CDLL,
    host: ctypes.CDLL,
    tokens: int,
    kept: int,
    width: int,
    dtype: str,
    in_place: bool,
) -> None:
    rng = np.random.default_rng(width)
    x, store = any_bits(rng, (2, tokens, width), dtype)
    update = any_bits(rng, (kept, width), dtype)
    gate = any_bits(rng, (width,), "float32")
    rows = rng.integers(-2, kept + 2, tokens).astype(np.int32)
    y = np.full_like(x, 7)
    out = store if in_place else np.full_like(x, 7)
    addresses = [device.put(a) for a in (x, update, store, gate, rows, y)]
    addresses.append(addresses[2] if in_place else device.put(out))
    sizes = (tokens, kept, width, DTYPE_CODES[dtype])
    assert kernels.liveedit_mask_cache_scatter(*addresses, *sizes, None) == 0
    got = [device.get(addresses[5], y), device.get(addresses[6], out)]
    pointers = [a.ctypes.data for a in (x, update, store, gate, rows, y, out)]
    assert host.liveedit_host_mask_cache_scatter(*pointers, *sizes) == 0
    for device_array, host_array in zip(got, (y, out), strict=True):
        np.testing.assert_array_equal(bits(device_array), bits(host_array))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("pixels", [35, 480 * 832])
def test_frames(
    device: Device, kernels: ctypes.CDLL, host: ctypes.CDLL, pixels: int, dtype: str
) -> None:
    rng = np.random.default_rng(pixels)
    rgb = rng.integers(0, 256, (pixels, 3), np.uint8)
    table = (np.arange(256) / 255).astype(REAL[dtype])
    planes = np.zeros((3, pixels), REAL[dtype])
    code = DTYPE_CODES[dtype]
    addresses = [device.put(a) for a in (rgb, table, planes)]
    assert kernels.liveedit_frames_in(*addresses, pixels, code, None) == 0
    pointers = [a.ctypes.data for a in (rgb, table, planes)]
    assert host.liveedit_host_frames_in(*pointers, pixels, code) == 0
    np.testing.assert_array_equal(bits(device.get(addresses[2], planes)), bits(planes))

    planes = any_bits(rng, (3, pixels), dtype)
    source, target = device.put(planes), device.put(rgb)
    assert kernels.liveedit_frames_out(source, target, pixels, -1.0, 127.5, code, None) == 0
    got = device.get(target, rgb)
    pointers = [planes.ctypes.data, rgb.ctypes.data]
    assert host.liveedit_host_frames_out(*pointers, pixels, -1.0, 127.5, code) == 0
    np.testing.assert_array_equal(got, rgb)


@pytest.mark.parametrize("count", [6, 16 * 3 * 60 * 104])
def test_noise(device: Device, kernels: ctypes.CDLL, host: ctypes.CDLL, count: int) -> None:
    key = np.array([2**63 + 5, 2**33 + 1], np.uint64)
    out = np.zeros(count, np.float32)
    addresses = [device.put(key), device.put(out)]
    assert kernels.liveedit_noise(*addresses, count, 3, 0, None) == 0
    got = device.get(addresses[1], out)
    assert host.liveedit_host_noise(key.ctypes.data, out.ctypes.data, count, 3, 0) == 0
    assert (got != out).mean() < 1e-3
    np.testing.assert_allclose(got, out, rtol=1e-6)


@pytest.mark.parametrize("row_bytes", [256, 10])
def test_copy_rows(device: Device, kernels: ctypes.CDLL, row_bytes: int) -> None:
    rng = np.random.default_rng(row_bytes)
    buffers = [rng.integers(0, 256, (12, 90, row_bytes), np.uint8) for _ in range(5)]
    addresses = [device.put(b) for b in buffers]
    table = device.put(np.array(addresses, np.uint64))
    plan = device.put(np.array([60, 10, 25], np.int64))
    sizes = (len(buffers), 12, 90, row_bytes, 30, 1)
    assert kernels.liveedit_copy_rows(table, plan, *sizes, None) == 0
    for address, array in zip(addresses, buffers, strict=True):
        array[:, 10:35] = array[:, 60:85]
        np.testing.assert_array_equal(device.get(address, array), array)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("dtype", REAL)
def test_importance(
    device: Device, kernels: ctypes.CDLL, host: ctypes.CDLL, dtype: str, bfloat16: bool
) -> None:
    rng = np.random.default_rng(0)
    edited, source = rng.normal(size=(2, 16, 3 * 60 * 104)).astype(REAL[dtype])
    out = np.zeros(3 * 60 * 104, np.float32)
    scratch = np.zeros(kernels.liveedit_importance_scratch(out.size), np.uint8)
    peak = np.zeros(1, np.float32)
    arrays = (edited, source, scratch, out, peak)
    sizes = (16, out.size, bfloat16, DTYPE_CODES[dtype])
    addresses = [device.put(a) for a in arrays]
    assert kernels.liveedit_importance(*addresses, None, *sizes, None) == 0
    assert host.liveedit_host_importance(*(a.ctypes.data for a in arrays), None, *sizes) == 0
    np.testing.assert_array_equal(device.get(addresses[3], out), out)
    np.testing.assert_array_equal(device.get(addresses[4], peak), peak)
