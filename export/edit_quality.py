"""What quantising does to edited video, and the limits it must keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liveedit.evaluation.quality import psnr, ssim
from liveedit.runtime.backend import Frames

REGION_PX = 8  # the edited region is made of squares of this side
REGION_CHANGE = 20.0  # a square belongs to it if its mean change is larger, of 255


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a quantised bundle is refused. All in dB.

    ``edited_db``: least PSNR against the high-precision edit inside the edited region. An error
    9 dB below that of the edit itself costs it 0.5 dB; 30 dB is that for an edit of 21 dB.
    ``background_loss_db``: most PSNR that the background may lose against the source.
    ``drift_db``: most by which the agreement may fall from the first quarter of a long stream to
    the last.
    """

    edited_db: float = 30.0
    background_loss_db: float = 0.3
    drift_db: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One clip, quantised against high precision. PSNR in dB; None where there are no pixels."""

    clip: str
    mask_cache: str
    agreement_db: float
    edited_db: float | None
    edited_ssim: float | None
    background_db: float | None  # quantised against the source
    background_loss_db: float | None
    drift_db: float | None = None


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
    clip: str, mask_cache: str, source: Frames, reference: Frames, got: Frames, *, drift: bool
) -> Quality:
    """Measure one clip. ``drift`` also compares its first and last quarter."""
    edited = edited_region(reference, source)
    before, after = psnr(reference, source, ~edited), psnr(got, source, ~edited)
    background, quarter = finite(after), max(1, len(got) // 4)
    fall = None
    if drift:
        first = finite(psnr(reference[:quarter], got[:quarter]))
        last = finite(psnr(reference[-quarter:], got[-quarter:]))
        fall = None if first is None or last is None else first - last
    return Quality(
        clip=clip,
        mask_cache=mask_cache,
        agreement_db=finite(psnr(reference, got)) or 0.0,
        edited_db=finite(psnr(reference, got, edited)),
        edited_ssim=finite(ssim(reference, got, edited)),
        background_db=background,
        background_loss_db=None if background is None else (finite(before) or 0.0) - background,
        drift_db=fall,
    )


def refusals(measured: Sequence[Quality], limits: Limits) -> list[str]:
    """Every limit that is broken, one sentence each; empty for a good bundle."""
    out = []
    for q in measured:
        where = f"{q.clip}, mask cache {q.mask_cache}"
        # A clip that the edit leaves alone is judged as a whole.
        value = q.agreement_db if q.edited_db is None else q.edited_db
        if value < limits.edited_db:
            out.append(
                f"{where}: the edited region differs from high precision by {value:.2f} dB PSNR, "
                f"at least {limits.edited_db:g} is asked"
            )
        loss = q.background_loss_db
        if loss is not None and loss > limits.background_loss_db:
            out.append(
                f"{where}: the background loses {loss:.2f} dB against the source, "
                f"{limits.background_loss_db:g} is allowed"
            )
        if q.drift_db is not None and q.drift_db > limits.drift_db:
            out.append(
                f"{where}: agreement falls by {q.drift_db:.2f} dB from the first quarter to the "
                f"last, {limits.drift_db:g} is allowed"
            )
    return out


def score(measured: Sequence[Quality]) -> float:
    """One number to rank by: the mean PSNR against high precision in the edited region, dB."""
    values = [q.agreement_db if q.edited_db is None else q.edited_db for q in measured]
    return float(np.mean(values))
