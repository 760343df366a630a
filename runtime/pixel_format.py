"""How a caller's frames are laid out in bytes, and what 0..255 mean to the graphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from liveedit.errors import UsageError
from liveedit.runtime.nv12 import ColorMatrix, Matrix, nv12_to_rgb, rgb_to_nv12

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PixelFormat:
    """``rgb``: [n, H, W, 3]. ``nv12``: [n, H * 3/2, W], of one colour matrix and range."""

    name: Literal["rgb", "nv12"] = "rgb"
    matrix: Matrix = "bt709"
    full_range: bool = False

    def __post_init__(self) -> None:
        if self.name not in ("rgb", "nv12"):
            raise UsageError(f"pixel format {self.name!r}; there are rgb, nv12")
        if self.matrix not in ("bt601", "bt709"):
            raise UsageError(f"colour matrix {self.matrix!r}; there are bt601, bt709")


@dataclass(frozen=True)
class FrameLayout:
    """One stream's frames."""

    height: int
    width: int
    format: PixelFormat = PixelFormat()
    pixel_range: tuple[float, float] = (0.0, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""
        if self.format.name == "nv12":
            return (self.height * 3 // 2, self.width)
        return (self.height, self.width, 3)

    @property
    def frame_bytes(self) -> int:
        return int(np.prod(self.shape))

    @cached_property
    def _color(self) -> ColorMatrix:
        return ColorMatrix.of(self.format.matrix, full_range=self.format.full_range)

    def to_rgb(self, frames: Frames) -> Frames:
        """[n, H, W, 3], the frames themselves if they are that already."""
        return frames if self.format.name == "rgb" else nv12_to_rgb(frames, self._color)

    def from_rgb(self, frames: Frames) -> Frames:
        """The reverse."""
        return frames if self.format.name == "rgb" else rgb_to_nv12(frames, self._color)
