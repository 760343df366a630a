"""Video edits with exact targets and masks, made by rule, the same for the same seed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from liveedit.distill import phrases
from liveedit.distill.objects import SHAPES, Layer, hand_layer, object_layer, random_pose
from liveedit.distill.palette import (
    CHROMATIC,
    COLOURS,
    colour_band,
    jittered_rgb,
    repaint,
)
from liveedit.distill.scenes import Bytes, Footage, background, table

Array = NDArray[np.floating[Any]]
Kind = Literal["recolour", "remove", "replace", "band", "global"]
Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One instruction on a scene and its exact result.

    Attributes:
        target: [T, H, W, 3], equal to the source wherever the mask is 0.
        mask: [T, H, W], 255 where the edit is full, less on soft edges.
        colour, new_colour, shape, new_shape: names, empty where the kind has none.
    """

    instruction: str
    kind: Kind
    target: Bytes
    mask: Bytes
    colour: str = ""
    new_colour: str = ""
    shape: str = ""
    new_shape: str = ""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A source clip [T, H, W, 3] with its edits."""

    source: Bytes
    background: str
    edits: list[Edit]

    def turned(self, *, mirrored: bool = False, backwards: bool = False) -> Scene:
        """The same with left and right exchanged, or played backwards."""

        def turn(frames: Bytes) -> Bytes:
            step_t, step_w = (-1 if backwards else 1), (-1 if mirrored else 1)
            return np.ascontiguousarray(frames[::step_t, :, ::step_w])

        edits = [replace(e, target=turn(e.target), mask=turn(e.mask)) for e in self.edits]
        return replace(self, source=turn(self.source), edits=edits)


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes are drawn."""

    num_frames: int = 24
    height_px: int = 128
    width_px: int = 224
    edits_per_scene: int = 3
    band_share: float = 0.27  # scenes of real footage only, with coloured regions repainted
    # Of the scenes with objects, those in which only the shape tells two or three of one colour
    # apart. It is black or white in half of them: most footage has much of both.
    lookalike_share: float = 0.0
    # Of the others, those in which a recolour takes the colour of another object wherever its split
    # has that recolour: only the order of the words tells which is meant. In half of them all
    # objects have one shape.
    swap_share: float = 0.0
    split: Split = "train"


def held_out(shape: str, colour: str, new_colour: str) -> bool:
    """Whether this recolour is kept out of training: about one in eight, fixed for ever."""
    return zlib.crc32(f"{shape}/{colour}/{new_colour}".encode()) % 8 == 0


def to_bytes(frames: Array) -> Bytes:
    return (np.clip(frames, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def black_and_white(x: Array) -> Array:
    return np.repeat(x @ np.asarray([[0.299], [0.587], [0.114]], np.float32), 3, axis=-1)


def _gain(*factors: float) -> Callable[[Array], Array]:
    return lambda x: x * np.asarray(factors, np.float32)


GRADES: dict[str, Callable[[Array], Array]] = {
    "black and white": black_and_white,
    "sepia": lambda x: black_and_white(x) * np.asarray([1.12, 0.92, 0.68], np.float32) + 0.02,
    "warmer": _gain(1.18, 1.02, 0.72),
    "cooler": _gain(0.74, 0.98, 1.2),
    "brighter": lambda x: np.asarray(np.clip(x, 0, 1) ** 0.6 * 1.05, np.float32),
    "darker": lambda x: np.asarray(np.clip(x, 0, 1) ** 1.3 * 0.6, np.float32),
    "night": lambda x: (
        (0.5 * black_and_white(x) + 0.5 * x) * np.asarray([0.3, 0.4, 0.68], np.float32)
    ),
}


def grade_edit(rng: np.random.Generator, source: Bytes) -> Edit:
    """A change of the whole picture."""
    name = list(GRADES)[int(rng.integers(len(GRADES)))]
    target = to_bytes(GRADES[name](source.astype(np.float32) / 255.0))
    return Edit(
        instruction=phrases.pick(rng, phrases.GLOBAL[name]),
        kind="global",
        target=target,
        mask=np.full(source.shape[:3], 255, np.uint8),
        new_colour=name,
    )


@dataclass(frozen=True)
class _Thing:
    layer: Layer
    shape: str
    colour: str
    rgb: Array
    pose_seed: int


class _ObjectScene:
    """Objects over a background, recomposed with one of them changed."""

    def __init__(self, rng: np.random.Generator, footage: Footage, config: SceneConfig) -> None:
        self.rng = rng
        self.size = (config.num_frames, config.height_px, config.width_px)
        frames, self.background = background(rng, footage, *self.size)
        self.frames = frames.astype(np.float32) / 255.0
        photos = footage.photos
        self.photo = (
            photos[int(rng.integers(len(photos)))] if len(photos) else table(rng, 1, 128, 128)[0]
        )
        # No draw without a share: the scenes of a seed stay as they were.
        self.alike = config.lookalike_share > 0 and rng.random() < config.lookalike_share
        common = COLOURS[int(rng.integers(len(COLOURS)))] if self.alike else ""
        if self.alike and rng.random() < 0.5:
            common = ("black", "white")[int(rng.integers(2))]
        self.swaps = not self.alike and config.swap_share > 0 and rng.random() < config.swap_share
        twin = SHAPES[int(rng.integers(len(SHAPES)))] if self.swaps and rng.random() < 0.5 else ""
        several = self.alike or self.swaps
        count = int(rng.choice([1, 2, 3], p=[0.0, 0.6, 0.4] if several else [0.35, 0.4, 0.25]))
        unit = config.height_px / 128.0
        self.things: list[_Thing] = []
        for i in range(count):
            shape = "box" if rng.random() < 0.28 else SHAPES[int(rng.integers(len(SHAPES)))]
            while self.alike and any(t.shape == shape for t in self.things):
                shape = SHAPES[int(rng.integers(len(SHAPES)))]
            shape = twin or shape
            colour = common or COLOURS[int(rng.integers(len(COLOURS)))]
            if any(t.shape == shape and t.colour == colour for t in self.things):
                continue
            large = (24.0, 44.0) if count == 1 or i == 0 else (15.0, 30.0)
            pose = random_pose(rng, self.size, (large[0] * unit, large[1] * unit))
            layer = object_layer(rng, shape, pose, self.size, self.photo)
            self.things.append(_Thing(layer, shape, colour, jittered_rgb(colour, rng), i))
            if i == 0:
                self.first_pose = pose
        self.poses = {0: self.first_pose}
        self.hand = hand_layer(rng, self.first_pose, self.size) if rng.random() < 0.3 else None
        self.source = to_bytes(self.compose({}))

    def compose(self, changed: dict[int, tuple[Layer, Array] | None]) -> Array:
        """Draw everything, far to near; an object mapped to None is left out."""
        out = self.frames
        for i in reversed(range(len(self.things))):
            thing = self.things[i]
            entry = changed.get(i, (thing.layer, thing.rgb))
            if entry is not None:
                out = entry[0].over(out, entry[1])
        if self.hand is not None:
            out = self.hand[0].over(out, self.hand[1])
        return out

    def visible(self, i: int, layer: Layer | None = None) -> Array:
        """[T, H, W] share of each pixel that shows object i."""
        alpha = (layer or self.things[i].layer).alpha
        for j in range(i):
            alpha = alpha * (1.0 - self.things[j].layer.alpha)
        if self.hand is not None:
            alpha = alpha * (1.0 - self.hand[0].alpha)
        return alpha

    def _named(self, i: int) -> str:
        me = self.things[i]
        return phrases.thing(
            self.rng,
            me.colour,
            me.shape,
            unique_colour=sum(t.colour == me.colour for t in self.things) == 1,
            unique_shape=sum(t.shape == me.shape for t in self.things) == 1,
            by_shape=0.4 if self.alike else 0.15,
        )

    def _finish(
        self,
        i: int,
        kind: Kind,
        instruction: str,
        changed: tuple[Layer, Array] | None,
        seen: Array,
        *,
        new_colour: str = "",
        new_shape: str = "",
    ) -> Edit:
        target = to_bytes(self.compose({i: changed}))
        # Rounding may move a pixel of the soft edge: the mask covers it, however faint.
        mask = np.maximum(to_bytes(seen), (seen > 0).astype(np.uint8))
        target = np.where(mask[..., None] > 0, target, self.source)
        me = self.things[i]
        return Edit(
            instruction=instruction,
            kind=kind,
            target=target,
            mask=mask,
            colour=me.colour,
            shape=me.shape,
            new_colour=new_colour,
            new_shape=new_shape,
        )

    def recolour(self, i: int, split: Split) -> Edit | None:
        rng, me = self.rng, self.things[i]
        options = [
            c
            for c in COLOURS
            if c != me.colour and held_out(me.shape, me.colour, c) == (split == "held_out")
        ]
        if not options:
            return None
        if self.swaps:
            options = [t.colour for t in self.things if t.colour in options] or options
        new = options[int(rng.integers(len(options)))]
        words = phrases.pick(rng, phrases.RECOLOUR).format(thing=self._named(i), colour=new)
        changed = (me.layer, jittered_rgb(new, np.random.default_rng(0)))
        return self._finish(i, "recolour", words, changed, self.visible(i), new_colour=new)

    def remove(self, i: int) -> Edit:
        words = phrases.pick(self.rng, phrases.REMOVE).format(thing=self._named(i))
        return self._finish(i, "remove", words, None, self.visible(i))

    def replace(self, i: int) -> Edit:
        """Another flat shape in the same place and, mostly, of the same colour."""
        rng, me = self.rng, self.things[i]
        options = [s for s in SHAPES if s not in (me.shape, "box")]
        shape = options[int(rng.integers(len(options)))]
        new = me.colour if rng.random() < 0.6 else COLOURS[int(rng.integers(len(COLOURS)))]
        noun = phrases.pick(rng, phrases.SYNONYMS.get(shape, (shape,)))
        other = noun if new == me.colour else f"{new} {noun}"
        words = phrases.pick(rng, phrases.REPLACE).format(thing=self._named(i), other=other)
        pose = self.poses[me.pose_seed]
        layer = object_layer(np.random.default_rng(1), shape, pose, self.size, self.photo)
        rgb = me.rgb if new == me.colour else jittered_rgb(new, np.random.default_rng(0))
        seen = np.maximum(self.visible(i), self.visible(i, layer))
        return self._finish(
            i, "replace", words, (layer, rgb), seen, new_colour=new, new_shape=shape
        )


def object_scene(rng: np.random.Generator, footage: Footage, config: SceneConfig) -> Scene:
    """Named moving objects, of which one is recoloured, removed or replaced."""
    scene = _ObjectScene(rng, footage, config)
    edits: list[Edit] = []
    for n in range(config.edits_per_scene):
        i = n % len(scene.things) if n < 2 else int(rng.integers(len(scene.things)))
        roll = rng.random()
        edit: Edit | None
        if roll < 0.66 or (config.split == "held_out" and n == 0):
            edit = scene.recolour(i, config.split)
        elif roll < 0.86:
            edit = scene.remove(i)
        elif roll < 0.93 and i == 0:
            edit = scene.replace(i)
        else:
            edit = grade_edit(rng, scene.source)
        if edit is not None and edit.mask.max() > 0:
            edits.append(edit)
    return Scene(source=scene.source, background=scene.background, edits=edits)


def band_scene(rng: np.random.Generator, footage: Footage, config: SceneConfig) -> Scene:
    """Real footage in which everything of one colour is repainted."""
    size = (config.num_frames, config.height_px, config.width_px)
    for _ in range(6):
        source, kind = background(rng, footage, *size, real_only=True)
        frames = source.astype(np.float32) / 255.0
        probe = frames[:: max(config.num_frames // 3, 1), ::4, ::4]
        shares = {c: float(colour_band(probe, c).mean()) for c in CHROMATIC}
        present = [c for c in CHROMATIC if 0.015 < shares[c] < 0.6]
        if present:
            break
    edits: list[Edit] = []
    for n in range(config.edits_per_scene):
        if not present or (n == config.edits_per_scene - 1 and rng.random() < 0.4):
            edits.append(grade_edit(rng, source))
            continue
        old = present[int(rng.integers(len(present)))]
        new = [c for c in COLOURS if c != old][int(rng.integers(len(COLOURS) - 1))]
        weight = colour_band(frames, old)
        target = frames + weight[..., None] * (repaint(frames, old, new) - frames)
        if rng.random() < 0.25:
            words = phrases.pick(rng, phrases.EVERYTHING).format(old=old, colour=new)
        else:
            words = phrases.pick(rng, phrases.RECOLOUR).format(
                thing=phrases.region(rng, old), colour=new
            )
        mask = np.maximum(to_bytes(weight), (weight > 0).astype(np.uint8))
        edits.append(
            Edit(
                instruction=words,
                kind="band",
                target=np.where(mask[..., None] > 0, to_bytes(target), source),
                mask=mask,
                colour=old,
                new_colour=new,
            )
        )
    return Scene(source=source, background=kind, edits=edits)


def make_scene(seed: int, footage: Footage, config: SceneConfig) -> Scene:
    """The scene of this seed, with at least one edit. Equal seeds and footage, equal bytes."""
    for attempt in range(100):
        rng = np.random.default_rng((seed, attempt, config.split == "held_out"))
        draw = band_scene if rng.random() < config.band_share else object_scene
        scene = draw(rng, footage, config)
        if scene.edits:
            return scene
    raise AssertionError(f"no edit in 100 tries of seed {seed}")
