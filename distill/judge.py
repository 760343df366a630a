"""What an edit achieved, from pixels: per edit, and averaged per kind of edit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from liveedit.distill.edits import Edit
from liveedit.distill.scenes import Bytes
from liveedit.evaluation.known_edits import named_colour_seen
from liveedit.evaluation.quality import SURE, closer_to_target, flicker, psnr, ssim

SSIM_EVERY = 3  # frames: neighbours are alike, and it is the slowest figure
_SHARES = ("named_colour", "closer_to_target", "done")
_WORDS = ("kind", "instruction", "scene")


def judge(source: Bytes, edit: Edit, output: Bytes, reconstruction: Bytes) -> dict[str, Any]:
    """The figures of one edit.

    ``named_colour``: is the region's median colour called by the name that was asked for? None for
    other kinds, and where the true result itself is not called so (print, shade). ``done``: did the
    named thing get the named change, which is that where it is known, and otherwise whether the
    region is nearer to the true result than to the source.

    Args:
        source: [T, H, W, 3].
        output: what to judge, like ``source``.
        reconstruction: the codec's version of the target.
    """
    target, mask = edit.target, edit.mask
    sure, outside = mask >= SURE, mask == 0
    named = named_colour_seen(edit.kind, edit.new_colour, output, target, mask)
    closer = closer_to_target(output, source, target, mask)
    some = slice(None, None, SSIM_EVERY)

    def similar(frames: Bytes, where: Any) -> float:
        return ssim(frames[some], target[some], where[some])

    return {
        "kind": edit.kind,
        "instruction": edit.instruction,
        "named_colour": named,
        "closer_to_target": closer,
        "done": closer if named is None else named,
        "region_psnr": psnr(output, target, sure),
        "region_psnr_unedited": psnr(source, target, sure),
        "region_psnr_codec": psnr(reconstruction, target, sure),
        "region_ssim": similar(output, sure),
        "region_ssim_codec": similar(reconstruction, sure),
        "background_psnr": psnr(output, target, outside),
        "background_psnr_codec": psnr(reconstruction, target, outside),
        "background_ssim": similar(output, outside),
        "background_ssim_codec": similar(reconstruction, outside),
        "flicker": flicker(output, target),
        "flicker_codec": flicker(reconstruction, target),
    }


def table(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Means per kind and over all; shares for the yes-no figures; empty cells are left out."""
    rows = list(rows)
    out: dict[str, dict[str, float | int]] = {}
    for kind in [*sorted({r["kind"] for r in rows}), "all"]:
        chosen = [r for r in rows if kind in ("all", r["kind"])]
        cells: dict[str, float | int] = {"count": len(chosen)}
        for name in chosen[0]:
            if name in _WORDS:
                continue
            values = [r[name] for r in chosen if r[name] is not None and np.isfinite(r[name])]
            if values:
                cells[name] = round(float(np.mean(values)), 4)
                if name in _SHARES:
                    cells[f"{name}_count"] = len(values)
        out[kind] = cells
    return out
