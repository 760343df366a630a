"""Clips to calibrate with: coarse noise, and a prompt each."""

from __future__ import annotations

import numpy as np

from liveedit.export.graph_trial import Clip


def noise_clips(*lengths: int) -> list[Clip]:
    """A clip of 48 x 64 for each length in frames."""
    rng = np.random.default_rng(5)
    out = []
    for i, frames in enumerate(lengths):
        small = rng.integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
        out.append(Clip(f"clip {i}", small.repeat(8, 1).repeat(8, 2), f"turn it red {i}"))
    return out
