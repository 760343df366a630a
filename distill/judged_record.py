"""Records of judged edits, for the tables in the docs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from liveedit.profiling.records import Better, Figure, Record, new_record, single, write_record

# How each figure of `judge` is recorded: unit, which way is better, factor.
_UNITS: dict[str, tuple[str, Better, float]] = {
    "done": ("%", "higher", 100.0),
    "named_colour": ("%", "higher", 100.0),
    "closer_to_target": ("%", "higher", 100.0),
    "region_ssim": ("1", "higher", 1.0),
    "background_ssim": ("1", "higher", 1.0),
    "flicker": ("grey levels", "lower", 1.0),
}


def figures_of(rows: Sequence[Mapping[str, Any]], prefix: str = "") -> dict[str, Figure]:
    """Means of the rows' figures over the rows that have them, with their count."""
    out: dict[str, Figure] = {}
    for name in rows[0] if rows else ():
        values = [r[name] for r in rows if isinstance(r[name], int | float)]
        values = [float(v) for v in values if np.isfinite(v)]
        if name == "scene" or not values:
            continue
        stem = name.removesuffix("_codec").removesuffix("_unedited")
        unit, better, factor = _UNITS.get(stem, ("dB", "higher", 1.0))
        mean = factor * float(np.mean(values))
        out[prefix + name] = Figure(value=mean, unit=unit, better=better, count=len(values))
    return out


def stage_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Over all edits, and of each kind: ``recolour.named_colour`` and so on.

    ``gain``: edited region against the unedited source. ``background_loss``: outside it, what the
    editor costs beyond the codec. ``flicker_ratio``: temporal error in units of the codec's own.
    """
    out = figures_of(rows)
    for kind in sorted({r["kind"] for r in rows}):
        out |= figures_of([r for r in rows if r["kind"] == kind], f"{kind}.")
    for prefix in ("", *(f"{kind}." for kind in sorted({r["kind"] for r in rows}))):
        if prefix + "region_psnr" in out:
            gain = out[prefix + "region_psnr"].value - out[prefix + "region_psnr_unedited"].value
            out[prefix + "gain"] = single(gain, "dB", "higher")
        if prefix + "background_psnr" in out:
            codec = out[prefix + "background_psnr_codec"].value
            loss = codec - out[prefix + "background_psnr"].value
            out[prefix + "background_loss"] = single(loss, "dB", "lower")
        if prefix + "flicker" in out:
            ratio = out[prefix + "flicker"].value / out[prefix + "flicker_codec"].value
            out[prefix + "flicker_ratio"] = single(ratio, "1", "lower")
    return out


def save(
    folder: Path,
    kind: str,
    part: str,
    configuration: dict[str, Any],
    figures: dict[str, Figure],
    notes: Sequence[str] = (),
) -> Record:
    """Write a record of this command; its file is named by kind and part."""
    # The last parts of paths: where they lie on this machine is nobody's business.
    words = [Path(w).name if w.startswith("/") else w for w in sys.argv[1:]]
    module = f"liveedit.distill.{Path(sys.argv[0]).stem}"
    command = shlex.join(["python", "-m", module, *words])
    record = new_record(kind, part, command, configuration, figures, notes=notes)
    name = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{kind}-{part}")
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / f"{'-'.join(filter(None, name.split('-')))}.json", record)
    return record
