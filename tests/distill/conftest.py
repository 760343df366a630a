"""Small footage and coded scenes that need no downloads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from liveedit.distill.edits import Edit, Scene
from liveedit.distill.scenes import Footage


@dataclass
class PaintedFootage:
    """A photograph with strong colours, and a clip of a moving stripe."""

    photos: list[NDArray[np.uint8]] = field(default_factory=list)
    clips: list[NDArray[np.uint8]] = field(default_factory=list)


@pytest.fixture(scope="session")
def footage() -> Footage:
    rng = np.random.default_rng(5)
    photo = np.kron(rng.integers(0, 256, (9, 12, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    clip = np.full((9, 48, 64, 3), 200, np.uint8)
    for t in range(9):
        clip[t, :, 5 * t : 5 * t + 12] = (30, 60, 220)
    return PaintedFootage([photo], [clip])


@pytest.fixture(scope="session")
def squares() -> list[Scene]:
    return [_moving_square(seed) for seed in range(3)]


def _moving_square(seed: int) -> Scene:
    """8 frames of 32 x 32: a square that should turn from one colour to another."""
    rng = np.random.default_rng(seed)
    source = np.full((8, 32, 32, 3), 128, np.uint8)
    mask = np.zeros((8, 32, 32), np.uint8)
    top, left = rng.integers(0, 16, 2)
    mask[:, top : top + 16, left : left + 16] = 255
    source[mask > 0] = (220, 30, 30)
    target = source.copy()
    target[mask > 0] = (44, 108, 219)
    edit = Edit(
        instruction="make the red square blue",
        kind="recolour",
        target=target,
        mask=mask,
        colour="red",
        new_colour="blue",
        shape="square",
    )
    return Scene(source=source, background="table", edits=[edit])
