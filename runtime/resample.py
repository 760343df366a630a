"""Resizing of 8-bit pictures with swscale, every channel on its own."""

from __future__ import annotations

from typing import Literal, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class Resampler:
    """Resizes pictures to one size. Keeps the scaler between calls, so use one per direction.

    Args:
        height_px, width_px: the size that comes out.
        filter: ``bilinear`` averages over the area when it shrinks; ``bicubic`` is for enlarging.
    """

    def __init__(
        self, height_px: int, width_px: int, filter: Literal["bilinear", "bicubic"]
    ) -> None:
        self.height_px = height_px
        self.width_px = width_px
        self._filter = filter.upper()
        self._scaler = VideoReformatter()

    def __call__(self, image: Image) -> Image:
        """[H, W, 3] or [H, W] uint8 -> the same with the new size. May return the input itself."""
        if image.shape[:2] == (self.height_px, self.width_px):
            return image
        # swscale halves the colour resolution of packed RGB; as three equal planes it stays whole.
        pixel_format = "yuv444p" if image.ndim == 3 else "gray"
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image.transpose(2, 0, 1)) if image.ndim == 3 else image,
            format=pixel_format,
        )
        scaled = self._scaler.reformat(
            frame,
            width=self.width_px,
            height=self.height_px,
            format=pixel_format,
            interpolation=self._filter,
        )
        out = cast(Image, scaled.to_ndarray())
        return np.ascontiguousarray(out.transpose(1, 2, 0)) if image.ndim == 3 else out
