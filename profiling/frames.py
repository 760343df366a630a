"""Source frames for measurements: made on the spot, or a clip held in memory. No file I/O later."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from liveedit.errors import UsageError
from liveedit.runtime.backend import Frames


def moving_square(count: int, height_px: int, width_px: int) -> Frames:
    """A square that moves over a gradient: [count, H, W, 3] uint8, the same every time."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    base = np.stack(
        [200 * x / width_px, 200 * y / height_px, np.full(x.shape, 90.0)], axis=-1
    ).astype(np.uint8)
    frames = np.repeat(base[None], count, axis=0)
    side = max(2, height_px // 4)
    for i in range(count):
        left = (i * max(1, width_px // 48)) % max(1, width_px - side)
        frames[i, side : 2 * side, left : left + side] = (230, 60, 40)
    return frames


def clip_frames(path: Path, count: int, height_px: int, width_px: int) -> Frames:
    """The first frames of a clip, nearest-neighbour to the bundle's size, repeated if too few.

    Raises:
        VideoError: the file is not a readable video.
    """
    from liveedit.runtime.video_reader import VideoReader  # PyAV, which nothing else here needs

    found: list[Frames] = []
    with VideoReader(path) as reader:
        for frame in reader.frames():
            h, w = frame.image.shape[:2]
            rows = np.arange(height_px) * h // height_px
            columns = np.arange(width_px) * w // width_px
            found.append(frame.image[rows][:, columns])
            if len(found) == count:
                break
    if not found:
        raise UsageError(f"{path} has no frames")
    return np.stack([found[i % len(found)] for i in range(count)])
