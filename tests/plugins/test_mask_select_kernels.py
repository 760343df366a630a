"""Importance and token selection: the kernels' bodies on the CPU against the host's mask cache."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from liveedit.runtime.kernels import DTYPE_CODES
from liveedit.runtime.mask_cache import (
    blocks_of_four,
    importance_map,
    mean_square,
    paper_tokens,
    released_tokens,
)

Array = NDArray[Any]
REAL = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
MODES = {"released": 0, "paper": 1}
SIZES = [(1, 2, 2), (3, 6, 10), (2, 16, 28), (3, 4, 34), (5, 10, 6)]  # frames, height, width


def aligned(shape: tuple[int, ...] | int, dtype: Any) -> Array:
    """Memory on 16 bytes, filled with ones' bits to show what was not written."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.full(count + 16, 255, np.uint8)
    start = -room.ctypes.data % 16
    return room[start : start + count].view(dtype).reshape(shape)


def device_importance(
    library: ctypes.CDLL, edited: Array, source: Array, *, bfloat16: bool, code: int
) -> tuple[Array, float]:
    channels, pixels = edited.shape[1], edited[0, 0].size
    scratch = aligned(library.liveedit_importance_scratch(pixels), np.uint8)
    out = aligned(edited.shape[2:], np.float32)
    peak, told = np.zeros((2, 1), np.float32)
    arrays = (edited, source, scratch, out, peak, told)
    status = library.liveedit_host_importance(
        *(a.ctypes.data for a in arrays), channels, pixels, bfloat16, code
    )
    assert status == 0
    assert np.array_equal(peak, told, equal_nan=True)
    return out, float(peak[0])


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 7, 16])
def test_importance_equals_the_mask_caches(
    host_library: ctypes.CDLL, channels: int, size: tuple[int, int, int], dtype: str, bfloat16: bool
) -> None:
    rng = np.random.default_rng(channels * size[2])
    edited, source = rng.normal(size=(2, 1, channels, *size)).astype(REAL[dtype])
    for case in ("random", "equal", "one frame", "overflow"):
        if case == "equal":
            edited = source.copy()
        if case == "one frame":
            edited[:, :, 0] += REAL[dtype](1.5)
        if case == "overflow" and dtype == "float32":
            edited[0, 0, 0, 0, 0] = 3e38  # its square is infinite
        got, peak = device_importance(
            host_library, edited, source, bfloat16=bfloat16, code=DTYPE_CODES[dtype]
        )
        with np.errstate(all="ignore"):
            e, s = edited.astype(np.float32), source.astype(np.float32)
            d = mean_square(e, s, bfloat16=bfloat16)
            want = importance_map(d, bfloat16=bfloat16)
        np.testing.assert_array_equal(got, want)
        assert peak == d.max()


class Selection:
    """Outputs of one call."""

    def __init__(self, tokens: int) -> None:
        self.keep_index = np.full(tokens, 77, np.int32)
        self.token_row = np.full(tokens, 77, np.int32)
        self.kept = aligned(tokens, np.uint8)
        self.counts = np.full(2, 77, np.int32)
        self.told = np.full(2, 77, np.int32)

    @property
    def arrays(self) -> tuple[Array, ...]:
        return self.keep_index, self.token_row, self.kept, self.counts, self.told


def select(
    library: ctypes.CDLL,
    importance: Array,
    *,
    mode: str,
    keep: int,
    bucket: int = 1,
    budget: int = 0,
    full: Array | None = None,
) -> Selection:
    size = importance.shape
    given = aligned(size, np.float32)
    given[...] = importance
    scratch = aligned(library.liveedit_select_scratch(*size), np.uint8)
    out = Selection(importance.size // 4)
    status = library.liveedit_host_select_tokens(
        given.ctypes.data,
        full.ctypes.data if full is not None else None,
        scratch.ctypes.data,
        *(a.ctypes.data for a in out.arrays),
        *size,
        MODES[mode],
        keep,
        bucket,
        budget,
    )
    assert status == 0
    return out


def expected(
    importance: Array, mode: str, keep_ratio: float, bucket: int, budget: int
) -> tuple[Array, int]:
    """Which tokens, [L] bool, and how many before their number was fixed."""
    choose = released_tokens if mode == "released" else paper_tokens
    chosen = choose(importance, keep_ratio).reshape(-1)
    selected = int(chosen.sum())
    size = budget or max(1, -(-selected // bucket)) * bucket
    if size >= chosen.size:
        return np.ones_like(chosen), chosen.size
    order = np.lexsort((-blocks_of_four(importance).reshape(-1), ~chosen))
    kept = np.zeros_like(chosen)
    kept[order[:size]] = True
    return kept, selected


def check(out: Selection, kept: Array, selected: int) -> None:
    index = np.flatnonzero(kept)
    np.testing.assert_array_equal(out.kept, kept)
    np.testing.assert_array_equal(out.keep_index[: len(index)], index)
    assert (out.keep_index[len(index) :] == -1).all()
    rows = np.full(kept.size, -1)
    rows[index] = np.arange(len(index))
    np.testing.assert_array_equal(out.token_row, rows)
    assert out.counts.tolist() == out.told.tolist() == [selected, len(index)]


def maps(rng: np.random.Generator, size: tuple[int, int, int]) -> dict[str, Array]:
    """Importance of many kinds."""
    smooth = rng.random(size, dtype=np.float32)
    hole = smooth.copy()
    hole[0] = 0
    broken = smooth.copy()
    broken.reshape(-1)[rng.integers(smooth.size, size=3)] = np.nan
    frame_broken = smooth.copy()
    frame_broken[-1] = np.nan
    compact = np.zeros_like(smooth)
    compact[:, : max(1, size[1] // 2), : max(1, size[2] // 2)] = 1
    return {
        "smooth": smooth,
        "four levels": np.floor(smooth * 4) / np.float32(4),
        "flat": np.zeros_like(smooth),
        "one frame flat": hole,
        "compact": compact,
        "negative zero": np.where(smooth < 0.5, np.float32(-0.0), np.float32(0)),
        "a few NaN": broken,
        "a frame of NaN": frame_broken,
    }


@pytest.mark.parametrize("keep_ratio", [1e-9, 0.1, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_selection_equals_the_mask_caches(
    host_library: ctypes.CDLL, size: tuple[int, int, int], mode: str, keep_ratio: float
) -> None:
    rng = np.random.default_rng(size[2])
    F, h, w = size
    items = h * w if mode == "released" else h * w // 4
    keep = max(1, int(items * keep_ratio))
    tokens = F * h * w // 4
    for name, importance in maps(rng, size).items():
        for bucket, budget in ((1, 0), (4, 0), (tokens + 3, 0), (4, 1), (4, max(1, tokens // 3))):
            out = select(
                host_library, importance, mode=mode, keep=keep, bucket=bucket, budget=budget
            )
            kept, selected = expected(importance, mode, keep_ratio, bucket, budget)
            assert np.array_equal(out.kept, kept), (name, bucket, budget)
            check(out, kept, selected)


def test_a_budget_is_never_missed(host_library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    importance = rng.random((3, 8, 10), dtype=np.float32)
    for budget in range(1, 61):
        out = select(host_library, importance, mode="released", keep=30, budget=budget)
        assert out.counts[1] == out.kept.sum() == min(budget, 60)


@pytest.mark.parametrize("value", [0, 1, -5])
def test_full_keeps_everything(host_library: ctypes.CDLL, value: int) -> None:
    importance = np.random.default_rng(0).random((3, 6, 10), dtype=np.float32)
    flag = np.array([value], np.int32)
    out = select(host_library, importance, mode="released", keep=15, full=flag)
    if value:
        check(out, np.ones(45, np.bool_), 45)
    else:
        check(out, *expected(importance, "released", 0.25, 1, 0))


def test_official_size(host_library: ctypes.CDLL) -> None:
    importance = np.random.default_rng(5).random((3, 60, 104), dtype=np.float32) ** 3
    importance[:, 10:40, 20:70] += np.float32(0.5)
    keep = int(60 * 104 * 0.3)
    out = select(host_library, importance, mode="released", keep=keep, bucket=128)
    check(out, *expected(importance, "released", 0.3, 128, 0))


def test_impossible_selections_are_refused(host_library: ctypes.CDLL) -> None:
    invalid = 1
    room = aligned(1 << 14, np.uint8).ctypes.data

    def call(
        *sizes: int, mode: int = 0, keep: int = 1, bucket: int = 1, budget: int = 0, start: int = 0
    ) -> int:
        status = host_library.liveedit_host_select_tokens(
            room + start, None, *[room] * 5, None, *sizes, mode, keep, bucket, budget
        )
        return int(status)

    assert call(3, 4, 5) == invalid  # odd
    assert call(0, 4, 4) == invalid
    assert call(1, 4, 4, mode=2) == invalid
    assert call(1, 4, 4, keep=0) == invalid
    assert call(1, 4, 4, keep=17) == invalid
    assert call(1, 4, 4, keep=5, mode=1) == invalid
    assert call(1, 4, 4, bucket=0) == invalid
    assert call(1, 4, 4, budget=-1) == invalid
    assert call(1, 4, 4, start=4) == invalid  # not on 16 bytes
    assert call(1 << 20, 64, 64) == invalid  # more tokens than 32 bits hold
