"""How a source frame of any size meets the one size that a bundle was exported for, and back.

- ``stretch`` scales the whole frame to the bundle's size and ignores the aspect ratio. This is what
  the released LiveEdit does and what its weights saw, so it is the default.
- ``crop`` shows the editor the largest centred part of the right aspect ratio. Everything outside
  it leaves as it came.
- ``pad`` shows the whole frame in its own aspect ratio and repeats the border pixels around it.

The way back always ends at the source's own size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from liveedit.errors import UsageError
from liveedit.runtime.resample import Image, Resampler

FitPolicy = Literal["stretch", "crop", "pad"]
FIT_POLICIES: tuple[FitPolicy, ...] = get_args(FitPolicy)


class Rect(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


@dataclass(frozen=True)
class Size:
    height_px: int
    width_px: int


def _centred(outer: Size, aspect: float) -> Rect:
    """The largest centred part with ``aspect`` = width / height, at least one pixel."""
    height, width = outer.height_px, outer.width_px
    if width > aspect * height:
        width = max(1, round(aspect * height))
    else:
        height = max(1, round(width / aspect))
    return Rect((outer.height_px - height) // 2, (outer.width_px - width) // 2, height, width)


class Fit:
    """Maps source frames to model frames and edited frames back.

    Args:
        source: the size of the source frames.
        model: the size the bundle's graphs take.
        policy: see the module's docstring.

    Raises:
        UsageError: an unknown policy.
    """

    def __init__(self, source: Size, model: Size, policy: FitPolicy = "stretch") -> None:
        if policy not in FIT_POLICIES:
            raise UsageError(f"no fit policy {policy!r}; there are {', '.join(FIT_POLICIES)}")
        self.source = source
        self.model = model
        self.source_rect = Rect(0, 0, source.height_px, source.width_px)
        self.model_rect = Rect(0, 0, model.height_px, model.width_px)
        if policy == "crop":
            self.source_rect = _centred(source, model.width_px / model.height_px)
        elif policy == "pad":
            self.model_rect = _centred(model, source.width_px / source.height_px)
        self._forward = Resampler(self.model_rect.height, self.model_rect.width, "bilinear")
        shrinks = self.source_rect.height < self.model_rect.height
        self._backward = Resampler(
            self.source_rect.height, self.source_rect.width, "bilinear" if shrinks else "bicubic"
        )
        self._mask = Resampler(model.height_px, model.width_px, "bicubic")

    @property
    def needs_source(self) -> bool:
        """Whether the way back needs the source frame too."""
        return self.source_rect[2:] != (self.source.height_px, self.source.width_px)

    def to_model(self, image: Image) -> Image:
        """[H, W, 3] of the source -> [h, w, 3] of the model, uint8."""
        inside = self._forward(np.ascontiguousarray(image[self.source_rect.slices]))
        top, left, height, width = self.model_rect
        below, right = self.model.height_px - top - height, self.model.width_px - left - width
        if not (top or left or below or right):
            return inside
        return np.pad(inside, ((top, below), (left, right), (0, 0)), mode="edge")

    def to_source(self, edited: Image, original: Image | None = None) -> Image:
        """[h, w, 3] edited -> [H, W, 3], uint8. ``original`` fills what the model did not see."""
        inside = self._backward(np.ascontiguousarray(edited[self.model_rect.slices]))
        if not self.needs_source:
            return inside
        assert original is not None, "a cropped fit needs the source frame"
        whole = original.copy()
        whole[self.source_rect.slices] = inside
        return whole

    def mask_to_source(self, mask: Image) -> Image:
        """[h / 8, w / 8] uint8 on the latent grid -> [H, W] uint8, smooth; 0 outside the fit."""
        fine = self._mask(mask)
        inside = self._backward(np.ascontiguousarray(fine[self.model_rect.slices]))
        if not self.needs_source:
            return inside
        whole = np.zeros((self.source.height_px, self.source.width_px), np.uint8)
        whole[self.source_rect.slices] = inside
        return whole

    def tokens_to_source(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[h / 16, w / 16] bool per token -> [H, W] bool, hard edges; True outside the fit."""
        whole = np.ones((self.source.height_px, self.source.width_px), np.bool_)
        inner, outer = self.model_rect, self.source_rect
        # The pixel centre of each source row and column, in model pixels.
        rows = inner.top + (np.arange(outer.height) + 0.5) * inner.height / outer.height
        columns = inner.left + (np.arange(outer.width) + 0.5) * inner.width / outer.width
        y = (rows * kept.shape[0] / self.model.height_px).astype(int)
        x = (columns * kept.shape[1] / self.model.width_px).astype(int)
        whole[outer.slices] = kept[y[:, None], x[None]]
        return whole
