"""What quantising does to one edited clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liveedit.evaluation.known_edits import EditScore, score_edit
from liveedit.evaluation.quality import SURE, psnr, ssim
from liveedit.export.graph_trial import Clip
from liveedit.runtime.backend import Frames

REGION_PX = 8  # the edited region is made of squares of this side
REGION_CHANGE = 20.0  # a square belongs to it if its mean change is larger, of 255


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One clip, quantised against high precision. PSNR in dB; None where there are no pixels.

    ``agreement_db``, ``edited_db``, ``edited_ssim`` compare the two edits; ``background_db`` and
    ``background_loss_db`` compare each with the source. ``base`` and ``quantised`` compare each
    with the exact result, where that is known.
    """

    clip: str
    mask_cache: str
    agreement_db: float
    edited_db: float | None
    edited_ssim: float | None
    background_db: float | None
    background_loss_db: float | None
    base: EditScore | None = None
    quantised: EditScore | None = None


def edited_region(reference: Frames, source: Frames) -> npt.NDArray[np.bool_]:
    """[T, H, W]: squares in which the high-precision edit changed the source."""
    change = np.abs(reference.astype(np.float32) - source.astype(np.float32)).mean(axis=-1)
    T, H, W = change.shape
    n = REGION_PX
    squares = change.reshape(T, H // n, n, W // n, n).mean(axis=(2, 4)) > REGION_CHANGE
    return squares.repeat(n, axis=1).repeat(n, axis=2)


def finite(value: float) -> float | None:
    """JSON has no nan and no infinity: equal pixels count as 100 dB, no pixels as None."""
    return None if math.isnan(value) else min(value, 100.0)


def compare(
    clip: Clip, mask_cache: str, reference: Frames, got: Frames, base: EditScore | None = None
) -> Quality:
    """Measure one clip. ``base`` is the reference's score, where the exact result is known."""
    known = clip.known
    edited = edited_region(reference, clip.frames) if known is None else known.mask >= SURE
    outside = ~edited if known is None else known.mask == 0
    before = finite(psnr(reference, clip.frames, outside))
    after = finite(psnr(got, clip.frames, outside))
    return Quality(
        clip=clip.name,
        mask_cache=mask_cache,
        agreement_db=finite(psnr(reference, got)) or 0.0,
        edited_db=finite(psnr(reference, got, edited)),
        edited_ssim=finite(ssim(reference, got, edited)),
        background_db=after,
        background_loss_db=None if before is None or after is None else before - after,
        base=base,
        quantised=None if known is None else score_edit(known, got),
    )


def score(measured: Sequence[Quality]) -> float:
    """One number to rank by: the mean PSNR against high precision in the edited region, dB."""
    values = [q.agreement_db if q.edited_db is None else q.edited_db for q in measured]
    return float(np.mean(values))
