"""The flow schedule against the values of the released pipeline."""

from __future__ import annotations

import numpy as np
import pytest

from liveedit.config import StreamConfig
from liveedit.errors import UsageError
from liveedit.schedule import (
    denoising_steps,
    nearest_index,
    nearest_sigma,
    sigma_table,
    timestep_table,
    timesteps,
    warp_steps,
)


def test_the_table_has_the_released_ends() -> None:
    table = timestep_table(5.0)
    assert table.shape == (1000,)
    assert table.dtype == np.float32
    assert table[0] == 1000.0
    assert table[-1] == pytest.approx(4.98008, abs=1e-5)
    assert (np.diff(table) < 0).all()
    assert sigma_table(1.0)[250] == np.float32(0.75)


@pytest.mark.parametrize(
    ("t", "index", "sigma"),
    [
        (1000.0, 0, 1.0),
        (750.0, 625, 0.75),
        (500.0, 833, 0.5005996),
        (250.0, 937, 0.2515974),
        (937.5, 250, 0.9375),
        (833.3333, 500, 0.8333333),
        (625.0, 750, 0.625),
        (0.0, 999, 0.0049801),
    ],
)
def test_lookup_takes_the_nearest_entry(t: float, index: int, sigma: float) -> None:
    assert nearest_index(t) == index
    assert float(nearest_sigma(t)) == pytest.approx(sigma, abs=1e-7)


def test_lookup_takes_arrays() -> None:
    assert nearest_index([[1000.0, 750.0], [500.0, 250.0]]).tolist() == [[0, 625], [833, 937]]


def test_warped_steps() -> None:
    warped = warp_steps((1000.0, 750.0, 500.0, 250.0, 0.0))
    assert warped == pytest.approx((1000.0, 937.5, 833.33333, 625.0, 0.0), abs=1e-4)
    with pytest.raises(UsageError, match=r"12\.5 cannot be warped"):
        warp_steps((12.5,))


def test_a_stream_runs_the_list_as_released_unless_told_to_warp() -> None:
    assert timesteps(StreamConfig()) == (1000.0, 750.0, 500.0, 250.0)
    steps = denoising_steps(StreamConfig(warp_denoising_step=True))
    assert [s.sigma for s in steps] == pytest.approx([1.0, 0.9375, 0.8333333, 0.625])
    assert [s.sigma_next for s in steps] == pytest.approx([0.9375, 0.8333333, 0.625, 0.0])
    assert denoising_steps(StreamConfig())[0].sigma_next == pytest.approx(0.75)


def test_steps_that_rise_or_leave_the_range_are_refused() -> None:
    for steps in ((500.0, 750.0), (1001.0,), (500.0, 0.0)):
        with pytest.raises(UsageError, match="must fall within"):
            denoising_steps(StreamConfig(denoising_step_list=steps))
    with pytest.raises(UsageError, match="timestep_shift must be positive"):
        sigma_table(0.0)
