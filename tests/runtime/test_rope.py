"""Rotary tables against one angle at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from liveedit.runtime.rope import RotaryTable, axis_dims


def test_the_split_of_a_head() -> None:
    assert axis_dims(128) == (44, 42, 42)
    assert axis_dims(64) == (24, 20, 20)
    assert axis_dims(12) == (4, 4, 4)


@pytest.mark.parametrize("first_frame", [0, 3, 1023, 10**9])
@pytest.mark.parametrize("head_dim", [16, 128])
def test_each_entry(head_dim: int, first_frame: int) -> None:
    F, H, W = 3, 5, 4
    table = RotaryTable(head_dim=head_dim, num_frames=F, height=H, width=W)
    address = table.cos.ctypes.data
    table.move_to(7)
    table.move_to(first_frame)
    assert table.cos.shape == table.sin.shape == (1, F * H * W, head_dim // 2)
    assert table.cos.dtype == np.float32
    assert table.cos.ctypes.data == address
    for f in range(F):
        for y in range(H):
            for x in range(W):
                token = (f * H + y) * W + x
                angles = [
                    position * 10000.0 ** (-2 * i / dim)
                    for position, dim in zip(
                        (first_frame + f, y, x), axis_dims(head_dim), strict=True
                    )
                    for i in range(dim // 2)
                ]
                expected_cos = [math.cos(a) for a in angles]
                expected_sin = [math.sin(a) for a in angles]
                # A double near 1e9 resolves angles to 1e-7: no worse than float32 itself.
                assert table.cos[0, token] == pytest.approx(expected_cos, abs=3e-7)
                assert table.sin[0, token] == pytest.approx(expected_sin, abs=3e-7)
