"""Metrics on inputs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from liveedit.evaluation.quality import (
    closer_to_target,
    flicker,
    psnr,
    region_colour,
    ssim,
    ssim_map,
)


def grey(value: int, frames: int = 3) -> np.ndarray:
    return np.full((frames, 16, 20, 3), value, np.uint8)


def test_psnr_of_a_constant_difference() -> None:
    assert psnr(grey(100), grey(110)) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(grey(7), grey(7)) == float("inf")


def test_psnr_counts_only_the_mask() -> None:
    a, b = grey(100), grey(100)
    b[:, :8] = 140
    where = np.zeros((3, 16, 20), bool)
    where[:, :8] = True
    assert psnr(a, b, where) == pytest.approx(20 * np.log10(255 / 40))
    assert psnr(a, b, ~where) == float("inf")
    assert np.isnan(psnr(a, b, np.zeros_like(where)))


def test_ssim_equals_a_direct_sum_over_one_window() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (1, 12, 12, 3)).astype(np.uint8) for _ in "ab")
    weights = np.asarray([0.299, 0.587, 0.114])
    x, y = ((v[0, 2:9, 3:10].astype(float) @ weights).ravel() for v in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    expected = ((2 * x.mean() * y.mean() + c1) * (2 * covariance + c2)) / (
        (x.mean() ** 2 + y.mean() ** 2 + c1) * (x.var() + y.var() + c2)
    )
    assert ssim_map(a, b)[0, 5, 6] == pytest.approx(expected)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, b) < 0.5


def test_region_colour_is_the_median_inside() -> None:
    frames, mask = grey(10), np.zeros((3, 16, 20), np.uint8)
    assert region_colour(frames, mask) is None
    mask[:, 4:8] = 255
    frames[:, 4:8] = (255, 0, 51)
    colour = region_colour(frames, mask)
    assert colour is not None
    assert colour == pytest.approx([1.0, 0.0, 0.2])


def test_closer_to_target() -> None:
    mask = np.full((3, 16, 20), 255, np.uint8)
    assert closer_to_target(grey(180), grey(0), grey(200), mask) is True
    assert closer_to_target(grey(20), grey(0), grey(200), mask) is False
    assert closer_to_target(grey(20), grey(100), grey(101), mask) is None


def test_flicker_ignores_a_constant_offset_and_sees_blinking() -> None:
    target = grey(100, 4)
    assert flicker(grey(130, 4), target) == 0.0
    blinking = target.copy()
    blinking[1::2] += 10
    assert flicker(blinking, target) == pytest.approx(10.0)
