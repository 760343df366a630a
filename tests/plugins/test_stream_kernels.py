"""What surrounds the engines: the kernels' bodies on the CPU against the host's own loop."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from liveedit.runtime.kernels import DTYPE_CODES
from liveedit.runtime.kv_cache import KVCache
from liveedit.runtime.noise import normal
from liveedit.runtime.onnx_backend import OnnxBackend
from liveedit.runtime.pixel_format import FrameLayout
from liveedit.runtime.rope import RotaryTable, axis_angles, axis_dims

Array = NDArray[Any]
REAL = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CPU_TYPES = ["float32", "float16"]  # of the ONNX Runtime backend, the oracle of frames
SIZES = [(1, 2, 4), (3, 5, 7), (2, 16, 24)]  # frames, height, width: 16-byte and scalar paths
STOP, LAST_GOOD, PASSTHROUGH = range(3)


def pointers(*arrays: Array) -> list[int]:
    return [array.ctypes.data for array in arrays]


def ulps(array: Array) -> Array:
    """float32 as integers in its order: neighbours differ by one."""
    bits = array.view(np.int32).astype(np.int64)
    out: Array = np.where(bits < 0, -(2**31) - bits, bits)
    return out


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
    backend.frame_ring(1, FrameLayout(1, 1, pixel_range=pixel_range))
    backend.write_frames("every", every)
    table = backend.read("every")[0, 0, :, 0, 0].copy()
    frames = frames_of(size)
    backend.write_frames("frames", frames)
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
    backend.frame_ring(1, FrameLayout(*size[1:], pixel_range=pixel_range))
    out = backend.output(size[0])
    backend.fetch_frames("frames", 0, out, 0)
    want = out.frames(0, size[0])
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


@pytest.mark.parametrize("row_bytes", [16, 10, 2048])
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
    table = np.array([b.ctypes.data for b in buffers], np.uint64)
    moves = np.array(plan, np.int64)
    aligned = all(b.ctypes.data % 16 == 0 for b in buffers)
    sizes = (len(buffers), groups, rows, row_bytes, most_rows, aligned)
    assert host_library.liveedit_host_copy_rows(*pointers(table, moves), *sizes) == 0
    for array, expected in zip(buffers, want, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(("slots", "sink"), [(4, 1), (7, 0), (2, 1), (1, 0)])
def test_begin_chunk_does_the_hosts_bookkeeping(
    host_library: ctypes.CDLL, slots: int, sink: int
) -> None:
    rows, frames, kept = 24, 3, 7
    kv = KVCache(num_slots=slots, num_sink_slots=sink, rows_per_slot=rows)
    control = np.array([0, 9, *[-1] * 6], np.int64)
    counts = np.array([5, kept], np.int32)
    write_index = np.zeros(1, np.int64)
    kv_full, kv_pruned, flag = (np.full(1, 5, np.int32) for _ in range(3))
    outputs = pointers(write_index, kv_full, kv_pruned, flag)
    for chunk in range(2 * slots + 3):
        flag[0] = 1
        known = None if chunk == 0 else counts.ctypes.data
        sizes = (slots, sink, rows, frames)
        status = host_library.liveedit_host_begin_chunk(
            control.ctypes.data, known, *outputs, *sizes
        )
        assert status == 0
        assert control[:4].tolist() == [chunk + 1, 9, chunk, chunk * frames]
        assert control[4] == write_index[0] == kv.write_index
        assert kv_full[0] == kv.kv_length(rows)
        assert kv_pruned[0] == kv.kv_length(rows if known is None else kept)
        assert flag[0] == 0
        copy = kv.commit()
        assert control[7] == (copy.count if copy else 0)
        if copy:
            assert control[5:].tolist() == [copy.src, copy.dst, copy.count]


@pytest.mark.parametrize("first_frame", [0, 1, 999, 123_457, 10**7 - 1, 2**40])
@pytest.mark.parametrize(("head_dim", "frames", "grid"), [(128, 3, (3, 5)), (12, 1, (7, 11))])
def test_rope_time_moves_the_hosts_table(
    host_library: ctypes.CDLL, head_dim: int, frames: int, grid: tuple[int, int], first_frame: int
) -> None:
    """Angles are the same doubles; only cos and sin of another library may round differently."""
    table = RotaryTable(head_dim=head_dim, num_frames=frames, height=grid[0], width=grid[1])
    cos, sin = table.cos.copy(), table.sin.copy()
    time_dim = axis_dims(head_dim)[0]
    frequency = axis_angles([1], time_dim)[0]
    place = np.array([first_frame], np.int64)
    arrays = pointers(place, frequency, cos, sin)
    sizes = (frames, grid[0] * grid[1], time_dim // 2, head_dim // 2)
    assert host_library.liveedit_host_rope_time(*arrays, *sizes) == 0
    table.move_to(first_frame)
    for got, want in ((cos, table.cos), (sin, table.sin)):
        distance = np.abs(ulps(got) - ulps(want))
        assert distance.max() <= 1
        assert (distance != 0).mean() < 1e-3


def test_rope_time_is_right_at_ten_million_frames(host_library: ctypes.CDLL) -> None:
    """Half a unit in the last place of float32 and little more; a float32 angle is off by 0.5."""
    first = 10**7 - 3
    place = np.array([first], np.int64)
    cos, sin = np.empty((2, 3, 22), np.float32)
    arrays = pointers(place, axis_angles([1], 44)[0], cos, sin)
    assert host_library.liveedit_host_rope_time(*arrays, 3, 1, 22, 22) == 0
    frequency = np.longdouble(10000) ** (-np.arange(22, dtype=np.longdouble) / 22)
    angle = np.multiply.outer(np.arange(first, first + 3).astype(np.longdouble), frequency)
    bound = 2.0**-25 + 5e-9
    assert np.abs(cos - np.cos(angle)).max() < bound
    assert np.abs(sin - np.sin(angle)).max() < bound


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("count", [1, 37, 4096])
def test_non_finite_sees_every_element(host_library: ctypes.CDLL, count: int, dtype: str) -> None:
    rng = np.random.default_rng(count)
    largest = ml_dtypes.finfo(REAL[dtype]).max
    for bad in (None, np.inf, -np.inf, np.nan):
        x = (rng.normal(size=count) * 100).astype(REAL[dtype])
        x[rng.integers(count)] = -largest
        if bad is not None:
            x[rng.integers(count)] = bad
        for before in (0, 1):
            flag = np.array([before], np.int32)
            call = (x.ctypes.data, count, flag.ctypes.data, DTYPE_CODES[dtype])
            assert host_library.liveedit_host_non_finite(*call) == 0
            assert flag[0] == (before or bad is not None)


@pytest.mark.parametrize("size", [3, 64])
@pytest.mark.parametrize("policy", [STOP, LAST_GOOD, PASSTHROUGH])
def test_replace_follows_the_policy(host_library: ctypes.CDLL, policy: int, size: int) -> None:
    rng = np.random.default_rng(size)
    last_good, source = rng.normal(size=(2, size)).astype(np.float16)
    has_good, outcome, told = (np.array([n], np.int32) for n in (0, 7, 7))
    remembered = None
    for bad in (True, False, True, False, False, True):
        x0 = rng.normal(size=size).astype(np.float16)
        given = x0.copy()
        flag = np.array([bad], np.int32)
        status = host_library.liveedit_host_replace(
            *pointers(x0, last_good, source),
            x0.nbytes,
            *pointers(flag, has_good, outcome, told),
            policy,
        )
        assert status == 0
        assert outcome[0] == told[0] == (1 + policy if bad else 0)
        if not bad:
            remembered = given
        want = given
        if bad and policy != STOP:
            want = source if policy == PASSTHROUGH or remembered is None else remembered
        np.testing.assert_array_equal(x0, want)
        assert has_good[0] == (remembered is not None)
        if remembered is not None:
            np.testing.assert_array_equal(last_good, remembered)


def test_bad_arguments_are_refused(host_library: ctypes.CDLL) -> None:
    invalid = 1
    assert host_library.liveedit_host_frames_in(None, None, None, 1, 3) == invalid
    assert host_library.liveedit_host_frames_out(None, None, -1, 0, 1, 0) == invalid
    assert host_library.liveedit_host_noise(None, None, -1, 0, 0) == invalid
    assert host_library.liveedit_host_copy_rows(None, None, 1, 1, -1, 1, 1, 0) == invalid
    assert host_library.liveedit_host_begin_chunk(*[None] * 6, 2, 2, 1, 1) == invalid
    assert host_library.liveedit_host_rope_time(*[None] * 4, 1, 1, 2, 1) == invalid
    assert host_library.liveedit_host_non_finite(None, -1, None, 0) == invalid
    assert host_library.liveedit_host_replace(*[None] * 3, 8, *[None] * 4, 3) == invalid
