"""The flow-matching schedule as plain tables: sigmas, nearest lookup, step lists. numpy only.

Shared by the networks and the runtime. ``sigma`` is the noise share: x_t = (1 - sigma) x0 +
sigma * noise; ``t = 1000 sigma`` is what the time embedding gets.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liveedit.config import StreamConfig
from liveedit.errors import UsageError

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class DenoisingStep:
    """One denoising pass. ``sigma_next`` is 0 for the last: its next latent is x0 itself."""

    timestep: float
    sigma: float
    sigma_next: float


# The pass that writes the keys and values of the finished latent; its output is not used.
CLEAN_STEP = DenoisingStep(timestep=0.0, sigma=0.0, sigma_next=0.0)


def sigma_table(shift: float = 5.0) -> npt.NDArray[np.float32]:
    """[1000] float32, falling from 1: entry i is ``shift s / (1 + (shift - 1) s)``, s = 1 - i/1000.

    Raises:
        UsageError: shift is not positive.
    """
    if not shift > 0:
        raise UsageError(f"timestep_shift must be positive, got {shift}")
    # Torch's linspace, bit for bit: a float32 step, counted from the nearer end, fused add.
    step = np.float64(np.float32(1.0 / NUM_TRAIN_TIMESTEPS))
    i = np.arange(NUM_TRAIN_TIMESTEPS)
    falling = np.where(
        i < NUM_TRAIN_TIMESTEPS // 2, 1.0 - step * i, step * (NUM_TRAIN_TIMESTEPS - i)
    )
    s = falling.astype(np.float32)
    scale = np.float32(shift)
    return np.asarray(scale * s / (1 + (scale - 1) * s), dtype=np.float32)


def timestep_table(shift: float = 5.0) -> npt.NDArray[np.float32]:
    """[1000] float32: the timesteps of `sigma_table`, 1000 first, 4.98 last for shift 5."""
    return sigma_table(shift) * np.float32(NUM_TRAIN_TIMESTEPS)


def nearest_index(timestep: npt.ArrayLike, shift: float = 5.0) -> npt.NDArray[np.int64]:
    """Index of the table entry nearest to each timestep; the first of two equally near."""
    t = np.asarray(timestep, dtype=np.float32)
    distance = np.abs(timestep_table(shift) - t[..., None])
    return np.asarray(distance.argmin(axis=-1), dtype=np.int64)


def nearest_sigma(timestep: npt.ArrayLike, shift: float = 5.0) -> npt.NDArray[np.float32]:
    """The sigma that the release uses for a timestep: that of the nearest table entry."""
    return np.asarray(sigma_table(shift)[nearest_index(timestep, shift)])


def warp_steps(nominal: tuple[float, ...], shift: float = 5.0) -> tuple[float, ...]:
    """Map nominal steps through the shifted table: 750 becomes 937.5 for shift 5.

    Raises:
        UsageError: a step is not a whole number in [0, 1000].
    """
    table = [*timestep_table(shift).tolist(), 0.0]
    for step in nominal:
        if step != int(step) or not 0 <= step <= NUM_TRAIN_TIMESTEPS:
            raise UsageError(
                f"denoising step {step} cannot be warped; it must be a whole number in [0, 1000]"
            )
    return tuple(table[NUM_TRAIN_TIMESTEPS - int(step)] for step in nominal)


def timesteps(stream: StreamConfig) -> tuple[float, ...]:
    """The timesteps of a stream's denoising passes, warped if its configuration says so."""
    if stream.warp_denoising_step:
        return warp_steps(stream.denoising_step_list, stream.timestep_shift)
    return stream.denoising_step_list


def denoising_steps(stream: StreamConfig) -> tuple[DenoisingStep, ...]:
    """What each denoising pass of a chunk is fed.

    Raises:
        UsageError: the steps do not fall, or one lies outside (0, 1000].
    """
    steps = timesteps(stream)
    if any(not 0 < t <= NUM_TRAIN_TIMESTEPS for t in steps) or any(
        a <= b for a, b in itertools.pairwise(steps)
    ):
        raise UsageError(f"denoising steps must fall within (0, 1000], got {list(steps)}")
    sigmas = [*nearest_sigma(steps, stream.timestep_shift).tolist(), 0.0]
    return tuple(
        DenoisingStep(timestep=t, sigma=sigmas[i], sigma_next=sigmas[i + 1])
        for i, t in enumerate(steps)
    )
