"""What an edit changed, as a soft mask; laying the edit over the source; a picture of the mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liveedit.errors import UsageError
from liveedit.runtime.resample import Image

_EDIT_COLOUR = np.array([255, 0, 96], np.uint16)


@dataclass(frozen=True, kw_only=True)
class SoftMask:
    """Turns importance into opacity: 0 up to ``low``, full from ``high`` on, smooth between.

    Importance is 1 at the most changed place of a chunk, so the two are shares of that place's
    change, or of ``floor`` where nothing changed that much: latents have a variance of about 1,
    and what an editor changes without being asked to stays far below half of it.
    """

    low: float = 0.06
    high: float = 0.2
    floor: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(
                f"a soft mask needs 0 <= low < high <= 1, got low {self.low}, high {self.high}"
            )

    def __call__(self, importance: npt.NDArray[np.float32], peak_change: float) -> Image:
        """[F, h, w] in [0, 1] -> [F, h, w] uint8 opacity, one latent pixel wider on every side.

        ``peak_change`` is the mean squared latent difference where importance is 1.

        The margin keeps the soft edge outside the edit: the fade then happens over unchanged
        pixels.
        """
        share = importance * (peak_change / max(peak_change, self.floor))
        x = np.clip((share - self.low) / (self.high - self.low), 0, 1)
        x = x * x * (3 - 2 * x)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        widest: npt.NDArray[np.float32] = windows.max(axis=(-2, -1))
        return np.rint(255 * widest).astype(np.uint8)


def lay_over(original: Image, edited: Image, opacity: Image) -> Image:
    """``edited`` over ``original``, both [H, W, 3], with [H, W] opacity; all uint8, new memory.

    Where opacity is 0 the original is kept bit for bit; where it is 255, the edit.
    """
    return _mix(original, edited.astype(np.uint16), opacity)


def paint_mask(original: Image, opacity: Image, kept: npt.NDArray[np.bool_] | None) -> Image:
    """The source with the edit mask in colour; tokens that the mask cache skipped are darkened.

    Args:
        original: [H, W, 3] uint8.
        opacity: [H, W] uint8, from `SoftMask`.
        kept: [H, W] bool: pixels of tokens that every pass computed. None: all of them.
    """
    painted = _mix(original, _EDIT_COLOUR, opacity // 2)
    if kept is not None:
        painted >>= (~kept).view(np.uint8)[..., None]
    return painted


def _mix(below: Image, above: npt.NDArray[np.uint16], opacity: Image) -> Image:
    weight = opacity.astype(np.uint16)[..., None]
    total = below * (255 - weight) + above * weight + 128  # fits 16 bits
    return ((total + (total >> 8)) >> 8).astype(np.uint8)  # total / 255, rounded
