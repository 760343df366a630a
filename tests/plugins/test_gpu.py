"""The kernels on a GPU against their host twin, bit for bit, on inputs that no run had before.

LIVEEDIT_SEED repeats a run; a test that fails prints it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from native_libraries import given
from numpy.typing import NDArray

from liveedit.runtime.kernels import DTYPE_CODES, KERNEL_LIBRARY, load_kernels
from liveedit.runtime.rope import axis_angles

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
    if path := given(KERNEL_LIBRARY):
        return load_kernels(path)
    build: Path = request.getfixturevalue("cuda_build")
    return load_kernels(build / KERNEL_LIBRARY)


@pytest.fixture
def host(device: Device, request: pytest.FixtureRequest) -> ctypes.CDLL:
    library: ctypes.CDLL = request.getfixturevalue("host_library")
    return library


def on_16_bytes(count: int, dtype: Any) -> Array:
    room = np.zeros(count * np.dtype(dtype).itemsize + 16, np.uint8)
    start = -room.ctypes.data % 16
    return room[start : start + count * np.dtype(dtype).itemsize].view(dtype)


class Twins:
    """Calls a kernel on the device and its twin on the host, with equal arrays."""

    def __init__(self, device: Device, kernels: ctypes.CDLL, host: ctypes.CDLL) -> None:
        self.device, self.kernels, self.host = device, kernels, host

    def call(self, name: str, *args: Any) -> list[tuple[Array, Array]]:
        """``args`` as in launchers.h, arrays for pointers. Arrays after the call, both ways.

        An array given twice is one buffer; the host's are written in place.
        """
        arrays = {id(a): a for a in args if isinstance(a, np.ndarray)}
        places = {key: self.device.put(a) for key, a in arrays.items()}
        sent = [places[id(a)] if isinstance(a, np.ndarray) else a for a in args]
        assert getattr(self.kernels, f"liveedit_{name}")(*sent, None) == 0
        got = [self.device.get(places[key], a) for key, a in arrays.items()]
        here = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in args]
        assert getattr(self.host, f"liveedit_host_{name}")(*here) == 0
        return list(zip(got, arrays.values(), strict=True))

    def agree(self, name: str, *args: Any) -> None:
        for got, want in self.call(name, *args):
            np.testing.assert_array_equal(bits(got), bits(want))


@pytest.fixture
def twins(device: Device, kernels: ctypes.CDLL, host: ctypes.CDLL) -> Twins:
    return Twins(device, kernels, host)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(os.environ.get("LIVEEDIT_SEED", time.time_ns()))
    print(f"LIVEEDIT_SEED={seed}")
    return np.random.default_rng(seed)


def bits(array: Array) -> Array:
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.itemsize])


def any_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Every kind of value: subnormal, infinite, NaN."""
    size = np.dtype(REAL[dtype]).itemsize
    words = rng.integers(0, 2 ** (8 * size), shape, np.uint64).astype(f"u{size}")
    return words.view(REAL[dtype])


ROWS = [(9, 5, 7), (131, 66, 40), (4680, 1170, 1536)]  # tokens, kept, width


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("tokens", "kept", "width"), ROWS)
def test_gather(
    twins: Twins, rng: np.random.Generator, tokens: int, kept: int, width: int, dtype: str
) -> None:
    x = any_bits(rng, (tokens, width), dtype)
    scale, shift = (any_bits(rng, (width,), "float32") for _ in range(2))
    index = rng.integers(-2, tokens + 2, kept).astype(np.int32)
    y = np.full((kept, width), 7).astype(REAL[dtype])
    sizes = (tokens, kept, width, DTYPE_CODES[dtype])
    twins.agree("mask_cache_gather", x, scale, shift, index, y, *sizes)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("tokens", "kept", "width"), ROWS)
def test_scatter(
    twins: Twins,
    rng: np.random.Generator,
    tokens: int,
    kept: int,
    width: int,
    dtype: str,
    in_place: bool,
) -> None:
    x, store = (any_bits(rng, (tokens, width), dtype) for _ in range(2))
    update = any_bits(rng, (kept, width), dtype)
    gate = any_bits(rng, (width,), "float32")
    rows = rng.integers(-2, kept + 2, tokens).astype(np.int32)
    y = np.full_like(x, 7)
    out = store if in_place else np.full_like(x, 7)
    sizes = (tokens, kept, width, DTYPE_CODES[dtype])
    twins.agree("mask_cache_scatter", x, update, store, gate, rows, y, out, *sizes)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("pixels", [35, 1024, 480 * 832])
def test_frames(twins: Twins, rng: np.random.Generator, pixels: int, dtype: str) -> None:
    rgb = rng.integers(0, 256, (pixels, 3), np.uint8)
    table = (np.arange(256) / 255).astype(REAL[dtype])
    planes = np.zeros((3, pixels), REAL[dtype])
    code = DTYPE_CODES[dtype]
    twins.agree("frames_in", rgb, table, planes, pixels, code)
    planes = any_bits(rng, (3, pixels), dtype)
    twins.agree("frames_out", planes, rgb, pixels, -1.0, 127.5, code)


@pytest.mark.parametrize("bt709", [0, 1])
@pytest.mark.parametrize("full_range", [0, 1])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("n", "h", "w"), [(3, 6, 10), (4, 480, 832)])
def test_nv12(
    twins: Twins,
    rng: np.random.Generator,
    n: int,
    h: int,
    w: int,
    dtype: str,
    full_range: int,
    bt709: int,
) -> None:
    y = rng.integers(0, 256, (n, h, w), np.uint8)
    uv = rng.integers(0, 256, (n, h, w), np.uint8)  # half of it unused
    table = (np.arange(256) / 255).astype(REAL[dtype])
    planes = np.zeros((3, n, h, w), REAL[dtype])
    sizes = (n, h, w, w, h * w, n * h * w)
    options = (bt709, full_range, DTYPE_CODES[dtype])
    twins.agree("nv12_in", y, uv, table, planes, *sizes, *options)
    planes = any_bits(rng, (3, n, h, w), dtype)
    twins.agree("nv12_out", planes, y, uv, *sizes, -1.0, 127.5, *options)


@pytest.mark.parametrize("count", [6, 16 * 3 * 60 * 104])
def test_noise(twins: Twins, rng: np.random.Generator, count: int) -> None:
    key = rng.integers(0, 2**64, 2, np.uint64)
    out = np.zeros(count, np.float32)
    (_, (got, want)) = twins.call("noise", key, out, count, 3, 0)
    assert (got != want).mean() < 1e-3  # log and cos of two libraries
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("first_frame", [0, 12345, 10**7])
def test_rope_time(twins: Twins, rng: np.random.Generator, first_frame: int) -> None:
    place = np.array([first_frame + rng.integers(100)], np.int64)
    cos, sin = rng.normal(size=(2, 3 * 1560, 64)).astype(np.float32)
    arrays = (place, axis_angles([1], 44)[0], cos, sin)
    for got, want in twins.call("rope_time", *arrays, 3, 1560, 22, 64):
        assert (got != want).mean() < 1e-3
        np.testing.assert_allclose(got, want, rtol=2e-7)


@pytest.mark.parametrize("row_bytes", [256, 10])
@pytest.mark.parametrize("plan", [(60, 10, 25), (0, 40, 30), (5, 5, 0)])
def test_copy_rows(
    device: Device,
    kernels: ctypes.CDLL,
    rng: np.random.Generator,
    plan: tuple[int, int, int],
    row_bytes: int,
) -> None:
    buffers = [rng.integers(0, 256, (12, 90, row_bytes), np.uint8) for _ in range(5)]
    addresses = [device.put(b) for b in buffers]
    table = device.put(np.array(addresses, np.uint64))
    moves = device.put(np.array(plan, np.int64))
    sizes = (len(buffers), 12, 90, row_bytes, 30, 1)
    assert kernels.liveedit_copy_rows(table, moves, *sizes, None) == 0
    src, dst, count = plan
    for address, array in zip(addresses, buffers, strict=True):
        array[:, dst : dst + count] = array[:, src : src + count]
        np.testing.assert_array_equal(device.get(address, array), array)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("count", [37, 16 * 3 * 60 * 104])
def test_non_finite(twins: Twins, rng: np.random.Generator, count: int, dtype: str) -> None:
    for bad in (0.0, np.inf, -np.inf, np.nan):
        x = rng.normal(size=count).astype(REAL[dtype])
        x[rng.integers(count)] = bad
        flag = np.zeros(1, np.int32)
        twins.agree("non_finite", x, count, flag, DTYPE_CODES[dtype])
        assert flag[0] == (bad != 0)


@pytest.mark.parametrize("policy", [0, 1, 2])
@pytest.mark.parametrize("size", [75, 16 * 3 * 60 * 104])
def test_replace(twins: Twins, rng: np.random.Generator, size: int, policy: int) -> None:
    for flag in (0, 1):
        for has_good in (0, 1):
            x0, last_good, source = (rng.normal(size=size).astype(np.float16) for _ in range(3))
            state = [np.array([n], np.int32) for n in (flag, has_good, 7)]
            twins.agree("replace", x0, last_good, source, x0.nbytes, *state, None, policy)


LATENTS = [(3, 60, 104), (1, 2, 2), (5, 6, 10)]  # frames, height, width


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", LATENTS)
def test_importance(
    twins: Twins, rng: np.random.Generator, size: tuple[int, int, int], dtype: str, bfloat16: bool
) -> None:
    pixels = int(np.prod(size))
    edited, source = (rng.normal(size=(16, pixels)).astype(REAL[dtype]) for _ in range(2))
    out, peak = np.zeros(pixels, np.float32), np.zeros(1, np.float32)
    scratch = on_16_bytes(twins.kernels.liveedit_importance_scratch(pixels), np.uint8)
    arrays = (edited, source, scratch, out, peak, None)
    twins.agree("importance", *arrays, 16, pixels, bfloat16, DTYPE_CODES[dtype])


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("size", LATENTS)
def test_select_tokens(
    twins: Twins,
    rng: np.random.Generator,
    size: tuple[int, int, int],
    levels: int | None,
    mode: int,
) -> None:
    pixels = int(np.prod(size))
    tokens = pixels // 4
    importance = on_16_bytes(pixels, np.float32)
    importance[:] = rng.random(pixels) ** 3
    if levels:
        importance[:] = np.floor(importance * levels) / levels
    keep = max(1, int(size[1] * size[2] * 0.3) // (4 if mode else 1))
    scratch = on_16_bytes(twins.kernels.liveedit_select_scratch(*size), np.uint8)
    for bucket, budget, full in ((128, 0, 0), (1, 0, 0), (1, max(1, tokens // 5), 0), (8, 0, 1)):
        flag = np.array([full], np.int32)
        index, rows = np.zeros((2, tokens), np.int32)
        kept, counts = on_16_bytes(tokens, np.uint8), np.zeros(2, np.int32)
        outputs = (index, rows, kept, counts)
        pairs = twins.call(
            "select_tokens",
            importance,
            flag,
            scratch,
            *outputs,
            None,
            *size,
            mode,
            keep,
            bucket,
            budget,
        )
        for got, want in pairs[3:]:
            np.testing.assert_array_equal(got, want)


def test_a_captured_graph_moves_from_chunk_to_chunk(
    device: Device, kernels: ctypes.CDLL, host: ctypes.CDLL, rng: np.random.Generator
) -> None:
    """Captured once, replayed with nothing updated: each chunk has its own numbers and noise."""
    control = np.array([0, rng.integers(2**62), *[0] * 6], np.int64)
    outputs = [np.zeros(1, t) for t in (np.int64, np.int32, np.int32, np.int32)]
    noise = np.zeros(999, np.float32)
    cos, sin = np.zeros((2, 3 * 4, 6), np.float32)
    frequency = axis_angles([1], 4)[0]
    arrays = [control, *outputs, noise, cos, sin, frequency]
    places = [device.put(a) for a in arrays]
    here = [a.ctypes.data for a in arrays]

    def chunk(library: Any, prefix: str, at: list[int], *stream: int) -> None:
        def call(name: str, *args: Any) -> None:
            assert getattr(library, prefix + name)(*args, *stream) == 0

        call("begin_chunk", at[0], None, *at[1:5], 4, 1, 12, 3)
        call("noise", at[0] + 8, at[5], noise.size, 0, 0)
        call("rope_time", at[0] + 24, at[8], at[6], at[7], 3, 4, 2, 6)

    runtime, check = device.runtime, device.check
    stream = check(runtime.cudaStreamCreate())
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(runtime.cudaStreamBeginCapture(stream, mode))
    chunk(kernels, "liveedit_", places, int(stream))
    graph = check(runtime.cudaStreamEndCapture(stream))
    replayable = check(runtime.cudaGraphInstantiate(graph, 0))
    for _ in range(7):
        check(runtime.cudaGraphLaunch(replayable, stream))
        check(runtime.cudaStreamSynchronize(stream))
        chunk(host, "liveedit_host_", here)
        for place, array in zip(places, arrays, strict=True):
            np.testing.assert_allclose(device.get(place, array), array, rtol=1e-6)
    check(runtime.cudaGraphExecDestroy(replayable))
    check(runtime.cudaGraphDestroy(graph))
    check(runtime.cudaStreamDestroy(stream))
