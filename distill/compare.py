"""Judged editors side by side: `python -m liveedit.distill.compare --help`.

Takes folders that `evaluate` wrote: a picture with a row per edit, and, of the last editor against
the first, the differences over the edits that both have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from liveedit.distill.judged_record import save, stage_figures
from liveedit.distill.scenes import Bytes
from liveedit.errors import UsageError
from liveedit.profiling.records import Figure, single

Judged = dict[str, Any]  # metrics.json
_DIFFERENCES = ("done", "region_psnr", "background_psnr", "region_ssim", "background_ssim")


def read_judged(folder: Path) -> tuple[Judged, dict[str, Bytes]]:
    """What `evaluate` left in a folder.

    Raises:
        UsageError: it left nothing there.
    """
    try:
        judged: Judged = json.loads((folder / "metrics.json").read_text())
        with np.load(folder / "shown.npz", allow_pickle=False) as data:
            shown = {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} holds no judged editor ({error}); make it with: "
            "python -m liveedit.distill.evaluate --out"
        ) from None
    return judged, shown


def same_edits(one: Judged, other: Judged) -> tuple[list[Any], list[Any]]:
    """Rows of the edits that both were judged on, in one order.

    Raises:
        UsageError: there are none.
    """

    def keyed(judged: Judged) -> dict[tuple[int, str, str], Any]:
        return {(r["scene"], r["kind"], r["instruction"]): r for r in judged["rows"]}

    a, b = keyed(one), keyed(other)
    if one["num_video_frames"] != other["num_video_frames"] or not a.keys() & b.keys():
        raise UsageError("the two were judged on different clips; give --scenes and --num-frames")
    common = [key for key in a if key in b]
    return [a[key] for key in common], [b[key] for key in common]


def differences(teacher: Judged, student: Judged) -> dict[str, Figure]:
    """Student minus teacher over the edits that both have, and the ratio of their calls."""
    old, new = (stage_figures(rows) for rows in same_edits(teacher, student))
    out = {
        prefix + name: single(
            new[prefix + name].value - old[prefix + name].value, new[prefix + name].unit, "higher"
        )
        for prefix in ("", "recolour.")
        for name in _DIFFERENCES
        if prefix + name in old and prefix + name in new
    }
    ratio = teacher["calls_per_frame"] / student["calls_per_frame"]
    clip_ratio = teacher["calls_per_clip"] / student["calls_per_clip"]
    seconds = teacher["network_s_per_frame"] / student["network_s_per_frame"]
    return {
        **out,
        "edits": single(old["region_psnr"].count, "1"),
        "fewer_calls_per_frame": single(ratio, "times", "higher"),
        "fewer_calls_per_clip": single(clip_ratio, "times", "higher"),
        "faster": single(seconds, "times", "higher"),
    }


def picture(path: Path, columns: Sequence[tuple[str, Bytes]], words: Sequence[str]) -> None:
    """A PNG or JPEG: a row per edit, a column per name, the instruction above each row."""
    from PIL import Image, ImageDraw

    count, height, width = columns[0][1].shape[:3]
    head, line = 14, 13
    sheet = Image.new("RGB", (width * len(columns), head + count * (height + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (name, frames) in enumerate(columns):
        draw.text((x * width + 3, 1), name, fill="black")
        for y, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (x * width, head + y * (height + line) + line))
    for y, text in enumerate(words):
        draw.text((3, head + y * (height + line) + 1), text, fill=(60, 60, 60))
    sheet.save(path, quality=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="teacher first, final student last")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--records", type=Path, help="folder for a record of the differences")
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    read = [read_judged(folder) for folder in options.folders]
    least = min(len(shown["output"]) for _, shown in read)
    chosen = slice(0, min(options.rows, least))
    first, shown = read[0]
    columns = [(name, shown[name][chosen]) for name in ("source", "target", "codec")]
    for judged, frames in read:
        name = f"{judged['stage']}, {judged['calls_per_frame']} calls per frame"
        columns.append((name, frames["output"][chosen]))
    picture(options.out, columns, [row["instruction"] for row in first["rows"][chosen]])
    if len(read) > 1:
        last = read[-1][0]
        found = differences(first, last)
        for name, figure in found.items():
            print(f"{name}: {figure.value:.3g} {figure.unit}")
        if options.records:
            part = f"{last['stage']} against {first['stage']}"
            configuration = {"teacher_step": first["step"], "student_step": last["step"]}
            save(options.records, "distill-pair", part, configuration, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
