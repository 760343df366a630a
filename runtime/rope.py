"""Rotary tables of a chunk's tokens, computed on the host in float64.

Positions are absolute and unbounded: a stream has no last frame. Head channels are adjacent pairs;
the first pairs turn with time, the next with the row, the last with the column.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

THETA = 10000.0
FloatArray = npt.NDArray[np.float32]


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels per head that turn with time, row and column. 128 gives 44, 42, 42."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def axis_angles(positions: npt.ArrayLike, dim: int) -> npt.NDArray[np.float64]:
    """[positions, dim / 2] float64 angles: position * 10000^(-2i / dim)."""
    frequency = THETA ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return np.multiply.outer(np.asarray(positions, dtype=np.float64), frequency)


class RotaryTable:
    """Cosines and sines of one chunk, [1, L, head_dim / 2] float32 each, updated in place."""

    def __init__(self, *, head_dim: int, num_frames: int, height: int, width: int) -> None:
        """``height`` and ``width`` count tokens, ``num_frames`` latent frames per chunk."""
        time, row, column = (d // 2 for d in axis_dims(head_dim))
        self.num_frames = num_frames
        self._time_dim = axis_dims(head_dim)[0]
        self.frequency = axis_angles([1], self._time_dim)[0]  # radians per frame, float64
        self.cos: FloatArray = np.empty(
            (1, num_frames * height * width, head_dim // 2), dtype=np.float32
        )
        self.sin: FloatArray = np.empty_like(self.cos)
        rows = axis_angles(range(height), 2 * row)[None, :, None]
        columns = axis_angles(range(width), 2 * column)[None, None]
        grid = (num_frames, height, width, head_dim // 2)
        for table, function in ((self.cos, np.cos), (self.sin, np.sin)):
            view = table.reshape(grid)
            view[..., time : time + row] = function(rows)
            view[..., time + row :] = function(columns)
        self._cos_time = self.cos.reshape(grid)[..., :time]
        self._sin_time = self.sin.reshape(grid)[..., :time]
        self.move_to(0)

    def move_to(self, first_frame: int) -> None:
        """Set the tables to the chunk whose first latent frame is ``first_frame``."""
        frames = first_frame + np.arange(self.num_frames, dtype=np.float64)
        angles = axis_angles(frames, self._time_dim)[:, None, None]
        self._cos_time[...] = np.cos(angles)
        self._sin_time[...] = np.sin(angles)
