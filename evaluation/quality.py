"""How good an edit is, from pixels alone. Frames are [T, H, W, 3] uint8, masks [T, H, W] uint8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

SURE = 200  # mask value from which a pixel counts as edited in full


def psnr(a: Bytes, b: Bytes, where: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB over the pixels ``where`` [T, H, W] is true.

    Returns:
        inf for equal pixels, nan if there are none.
    """
    squared = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    chosen = squared if where is None else squared[where]
    if chosen.size == 0:
        return float("nan")
    error = float(chosen.mean())
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim_map(a: Bytes, b: Bytes, window: int = 7) -> Floats:
    """Structural similarity of grey values, [T, H, W], uniform window with edges repeated."""
    grey = np.asarray([0.299, 0.587, 0.114])
    x, y = a.astype(np.float64) @ grey, b.astype(np.float64) @ grey
    mean_x, mean_y = _box(x, window), _box(y, window)
    var_x = _box(x * x, window) - mean_x**2
    var_y = _box(y * y, window) - mean_y**2
    cov = _box(x * y, window) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return np.asarray(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))


def ssim(a: Bytes, b: Bytes, where: NDArray[np.bool_] | None = None) -> float:
    """Mean of `ssim_map` over ``where``; nan if that is nowhere."""
    values = ssim_map(a, b)
    chosen = values if where is None else values[where]
    return float(chosen.mean()) if chosen.size else float("nan")


def _box(x: Floats, window: int) -> Floats:
    """Mean over window x window around every pixel of the last two axes."""
    half = window // 2
    padded = np.pad(x, ((0, 0), (half + 1, half), (half + 1, half)), mode="edge")
    total = padded.cumsum(1).cumsum(2)
    w = window
    area = total[:, w:, w:] - total[:, :-w, w:] - total[:, w:, :-w] + total[:, :-w, :-w]
    return np.asarray(area / window**2)


def region_colour(frames: Bytes, mask: Bytes) -> NDArray[np.float32] | None:
    """Median colour [3] in [0, 1] where the mask is sure; None where it never is."""
    sure = mask >= SURE
    if not sure.any():
        return None
    return np.asarray(np.median(frames[sure], axis=0) / 255.0, np.float32)


def closer_to_target(output: Bytes, source: Bytes, target: Bytes, mask: Bytes) -> bool | None:
    """Whether the edited region is nearer to the target than to the source (squared error).

    None where source and target do not differ enough to tell.
    """
    sure = mask >= SURE
    if not sure.any() or psnr(source, target, sure) > 35:
        return None
    return psnr(output, target, sure) > psnr(output, source, sure)


def flicker(output: Bytes, target: Bytes) -> float:
    """Temporal error, 0..255: root mean square of output change minus target change."""
    if len(output) < 2:
        return 0.0
    changes = np.diff(output.astype(np.float64), axis=0) - np.diff(
        target.astype(np.float64), axis=0
    )
    return float(np.sqrt((changes**2).mean()))
