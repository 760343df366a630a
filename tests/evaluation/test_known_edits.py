"""Edits with known results: the same bytes each time, the result right and the source wrong."""

from __future__ import annotations

import numpy as np
import pytest

from liveedit.distill.edits import SceneConfig
from liveedit.evaluation.generated_edits import generated_footage, known_edits
from liveedit.evaluation.known_edits import score_edit

SIZE = (48, 64)


def test_generated_edits_need_nothing_and_repeat() -> None:
    config = SceneConfig(
        num_frames=4, height_px=SIZE[0], width_px=SIZE[1], edits_per_scene=2, split="held_out"
    )
    footage = generated_footage("held_out", *SIZE)
    edits = known_edits(6, footage, config)
    again = known_edits(6, generated_footage("held_out", *SIZE), config)
    assert len(edits) == 6
    assert len({e.name for e in edits}) == 6
    for one, other in zip(edits, again, strict=True):
        np.testing.assert_array_equal(one.source, other.source)
        np.testing.assert_array_equal(one.target, other.target)
        assert one.prompt == other.prompt
        np.testing.assert_array_equal(one.source[one.mask == 0], one.target[one.mask == 0])
    only = known_edits(2, footage, config, 50, ("recolour",))
    assert [e.kind for e in only] == ["recolour", "recolour"]


def test_the_splits_share_no_picture() -> None:
    train, held = (generated_footage(s, *SIZE) for s in ("train", "held_out"))
    assert not len(train.clips)
    assert len(held.clips) == 1
    for a in train.photos:
        assert all(not np.array_equal(a, b) for b in held.photos)
        assert a.std() > 1


def test_scores_of_the_result_and_of_the_source() -> None:
    config = SceneConfig(num_frames=2, height_px=96, width_px=128, split="held_out")
    edits = known_edits(3, generated_footage("held_out", 96, 128), config, 0, ("recolour",))
    edit = next(e for e in edits if score_edit(e, e.target).named_colour)
    right, wrong = score_edit(edit, edit.target), score_edit(edit, edit.source)
    assert (right.named_colour, right.followed, right.region_db) == (True, True, 100.0)
    assert right.background_ssim == pytest.approx(1.0)
    assert (wrong.named_colour, wrong.followed) == (False, False)
    assert wrong.background_db == 100.0
    assert wrong.region_db is not None
    assert wrong.region_db < 25
