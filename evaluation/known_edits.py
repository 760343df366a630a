"""Edits whose exact result is known, and how near to it an editor comes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liveedit.distill.palette import nearest_colour
from liveedit.evaluation.quality import (
    SURE,
    Bytes,
    closer_to_target,
    psnr,
    region_colour,
    ssim_map,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownEdit:
    """One instruction on one clip and its exact result.

    Attributes:
        source, target: [T, H, W, 3] uint8.
        mask: [T, H, W] uint8, 255 where the edit is full, 0 where target equals source.
        new_colour: empty where the edit names none.
    """

    name: str
    kind: str
    prompt: str
    source: Bytes
    target: Bytes
    mask: Bytes
    new_colour: str = ""


@dataclass(frozen=True, kw_only=True)
class EditScore:
    """One edit against its exact result. PSNR in dB; None where there are no such pixels.

    ``named_colour``: the region has the named colour; None where none is named, or where the true
    result itself is not seen as it. ``followed``: the region is nearer to the result than to the
    source.
    """

    named_colour: bool | None
    followed: bool | None
    region_db: float | None
    region_ssim: float | None
    background_db: float | None
    background_ssim: float | None


def named_colour_seen(
    kind: str, new_colour: str, output: Bytes, target: Bytes, mask: Bytes
) -> bool | None:
    """Whether the region now has the colour that was named; None where that cannot be asked."""
    colour, wanted = region_colour(output, mask), region_colour(target, mask)
    if kind not in ("recolour", "band") or colour is None or wanted is None:
        return None
    # Where the true result itself is not seen as the named colour (print, shade), do not ask.
    if nearest_colour(wanted) != new_colour:
        return None
    return nearest_colour(colour) == new_colour


def score_edit(edit: KnownEdit, output: Bytes) -> EditScore:
    """The figures of one edited clip [T, H, W, 3]."""
    region, background = edit.mask >= SURE, edit.mask == 0
    similar = ssim_map(output, edit.target)
    return EditScore(
        named_colour=named_colour_seen(
            edit.kind, edit.new_colour, output, edit.target, edit.mask
        ),
        followed=closer_to_target(output, edit.source, edit.target, edit.mask),
        region_db=_decibel(psnr(output, edit.target, region)),
        region_ssim=float(similar[region].mean()) if region.any() else None,
        background_db=_decibel(psnr(output, edit.target, background)),
        background_ssim=float(similar[background].mean()) if background.any() else None,
    )  # fmt: skip


def _decibel(value: float) -> float | None:
    """Equal pixels count as 100 dB, no pixels as None: JSON knows neither inf nor nan."""
    return None if np.isnan(value) else min(value, 100.0)
