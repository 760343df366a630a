"""Procedural edits: deterministic, exact outside the mask, and doing what their words say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from liveedit.distill.edits import SceneConfig, grade_edit, held_out, make_scene
from liveedit.distill.objects import SHAPES, flat_layer, random_pose
from liveedit.distill.palette import (
    CHROMATIC,
    COLOURS,
    anchor_rgb,
    colour_band,
    hsv_to_rgb,
    nearest_colour,
    repaint,
    rgb_to_hsv,
)
from liveedit.distill.phrases import ANYTHING, SYNONYMS, rephrase
from liveedit.distill.scenes import Footage

SMALL = SceneConfig(num_frames=5, height_px=48, width_px=64)


def test_same_seed_same_bytes(footage: Footage) -> None:
    first, again = make_scene(3, footage, SMALL), make_scene(3, footage, SMALL)
    other = make_scene(4, footage, SMALL)
    assert np.array_equal(first.source, again.source)
    assert [e.instruction for e in first.edits] == [e.instruction for e in again.edits]
    assert all(
        np.array_equal(a.target, b.target) for a, b in zip(first.edits, again.edits, strict=True)
    )
    assert not np.array_equal(first.source, other.source)


@pytest.mark.parametrize("seed", range(12))
def test_target_equals_source_outside_the_mask(seed: int, footage: Footage) -> None:
    scene = make_scene(seed, footage, SMALL)
    assert scene.source.shape == (5, 48, 64, 3)
    for edit in scene.edits:
        assert edit.target.dtype == edit.mask.dtype == np.uint8
        outside = edit.mask == 0
        assert np.array_equal(edit.target[outside], scene.source[outside])
        assert (edit.target != scene.source).any() or edit.kind in ("remove", "band", "global")


def test_every_kind_appears_and_names_its_colours(footage: Footage) -> None:
    edits = [e for seed in range(40) for e in make_scene(seed, footage, SMALL).edits]
    assert {e.kind for e in edits} == {"recolour", "remove", "replace", "band", "global"}
    for edit in edits:
        if edit.kind in ("recolour", "band"):
            assert edit.new_colour in edit.instruction
            assert edit.new_colour != edit.colour
        assert edit.instruction == edit.instruction.lower()


def test_recolours_keep_the_splits_apart(footage: Footage) -> None:
    for split in ("train", "held_out"):
        config = SceneConfig(num_frames=2, height_px=48, width_px=64, split=split)
        for seed in range(15):
            for e in make_scene(seed, footage, config).edits:
                if e.kind == "recolour":
                    assert held_out(e.shape, e.colour, e.new_colour) == (split == "held_out")


def test_lookalikes_are_named_by_their_shape(footage: Footage) -> None:
    """All objects share a colour, and often the words do not even say it."""
    config = replace(SMALL, num_frames=2, band_share=0.0, lookalike_share=1.0)
    colourless = shapes = 0
    for seed in range(40):
        edits = [e for e in make_scene(seed, footage, config).edits if e.shape]
        assert len({e.colour for e in edits}) <= 1
        shapes += len({e.shape for e in edits}) > 1
        for edit in edits:
            words = edit.instruction.split()
            nouns = {*SYNONYMS.get(edit.shape, ()), edit.shape}
            assert nouns & set(words), edit
            colourless += edit.colour not in words
    assert shapes > 30, "nearly all scenes have two different objects to edit"
    assert 20 < colourless < 70


def test_swaps_take_the_colour_of_another_object(footage: Footage) -> None:
    config = replace(SMALL, num_frames=2, band_share=0.0, swap_share=1.0)
    taken = recolours = one_shape = scenes = 0
    for seed in range(60):
        edits = [e for e in make_scene(seed, footage, config).edits if e.shape]
        colours = {e.colour for e in edits}
        if len(colours) > 1:
            scenes += 1
            one_shape += len({e.shape for e in edits}) == 1
        for edit in edits:
            if edit.kind == "recolour" and len(colours) > 1:
                recolours += 1
                taken += edit.new_colour in colours
    assert recolours > 50
    assert taken / recolours > 0.7, "the rest would be held out, or takes an unseen object's colour"
    assert 0.3 < one_shape / scenes < 0.8


def test_held_out_share_is_about_one_eighth() -> None:
    triples = [(s, a, b) for s in SHAPES for a in COLOURS for b in COLOURS if a != b]
    share = np.mean([held_out(*t) for t in triples])
    assert 0.08 < share < 0.18


@pytest.mark.parametrize("colour", COLOURS)
def test_recoloured_object_has_the_named_colour(colour: str, footage: Footage) -> None:
    rng = np.random.default_rng(0)
    size = (3, 64, 64)
    layer = flat_layer(rng, "square", random_pose(rng, size, (18.0, 20.0)), size)
    frames = layer.over(np.full((*size, 3), 0.5, np.float32), anchor_rgb(colour))
    inside = (layer.alpha == 1.0) & (layer.paint == 1.0)
    assert inside.any()
    assert nearest_colour(np.median(frames[inside], axis=0)) == colour
    assert np.array_equal(frames[layer.alpha == 0], np.full_like(frames[layer.alpha == 0], 0.5))


def test_hsv_round_trip() -> None:
    rgb = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    assert np.abs(hsv_to_rgb(*rgb_to_hsv(rgb)) - rgb).max() < 1e-5


@pytest.mark.parametrize("old", CHROMATIC)
def test_repainting_an_anchor_gives_the_other_anchor_its_name(old: str) -> None:
    for new in COLOURS:
        if new != old:
            assert nearest_colour(repaint(anchor_rgb(old), old, new)) == new


def test_colour_band_is_zero_on_grey_and_on_other_colours() -> None:
    assert colour_band(np.full((4, 3), 0.5, np.float32), "yellow").max() == 0
    for name in CHROMATIC:
        for other in CHROMATIC:
            weight = float(colour_band(anchor_rgb(other), name))
            assert (weight > 0.5) == (name == other), (name, other)


def test_grade_changes_everything_by_its_rule(footage: Footage) -> None:
    source = footage.clips[0]
    names = set()
    for seed in range(40):
        edit = grade_edit(np.random.default_rng(seed), source)
        names.add(edit.new_colour)
        assert (edit.mask == 255).all()
        if edit.new_colour == "black and white":
            assert np.ptp(edit.target.astype(int), axis=-1).max() == 0
    assert "night" in names
    assert len(names) == 7


def test_rephrased_instructions_still_name_the_object_and_its_new_colour() -> None:
    rng = np.random.default_rng(0)
    edit = {"kind": "recolour", "shape": "ball", "colour": "red", "new_colour": "blue"}
    named = edit | {"instruction": "paint the red ball blue"}
    by_colour = {rephrase(rng, named) for _ in range(99)}
    assert len(by_colour) > 12
    for words in by_colour:
        assert {"red", "blue"} <= set(words.split())
        assert {"ball", "sphere"} & set(words.split())
    by_shape = [rephrase(rng, edit | {"instruction": "paint the ball blue"}) for _ in range(99)]
    assert 20 < sum("red" not in words.split() for words in by_shape) < 90
    by_colour_alone = edit | {"instruction": "paint the red thing blue"}
    told = [rephrase(rng, by_colour_alone) for _ in range(99)]
    assert 40 < sum(not set(words.split()).isdisjoint(ANYTHING) for words in told) < 90
    assert all("red" in words.split() for words in told)
    whole = {"kind": "global", "instruction": "make it sepia"}
    assert rephrase(rng, whole) == "make it sepia"
