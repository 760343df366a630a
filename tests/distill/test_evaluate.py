"""Judging an edit: the true result passes, the untouched source fails."""

from __future__ import annotations

import numpy as np
import pytest

from liveedit.distill.edits import Scene
from liveedit.distill.judge import judge, table


def test_target_passes_and_source_fails(squares: list[Scene]) -> None:
    scene = squares[0]
    edit = scene.edits[0]
    good = judge(scene.source, edit, edit.target, edit.target)
    assert good["named_colour"] is True
    assert good["closer_to_target"] is True
    assert good["region_psnr"] == good["background_psnr"] == float("inf")
    bad = judge(scene.source, edit, scene.source, edit.target)
    assert bad["named_colour"] is False
    assert bad["closer_to_target"] is False
    assert bad["region_psnr"] == bad["region_psnr_unedited"] < 12
    assert bad["flicker"] == 0.0


def test_table_averages_what_is_there(squares: list[Scene]) -> None:
    scene = squares[0]
    edit = scene.edits[0]
    worse = np.clip(edit.target.astype(int) + 10, 0, 255).astype(np.uint8)
    rows = [judge(scene.source, edit, out, edit.target) for out in (worse, scene.source)]
    cells = table(rows)["recolour"]
    assert cells["count"] == cells["named_colour_count"] == 2
    assert cells["named_colour"] == 0.5
    # The source is exact outside the mask, infinitely so: only the other one counts.
    assert cells["background_psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
