"""Instructions in words: several phrasings of every edit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RECOLOUR = (
    "make the {thing} {colour}",
    "turn the {thing} {colour}",
    "change the {thing} to {colour}",
    "paint the {thing} {colour}",
    "recolor the {thing} to {colour}",
    "color the {thing} {colour}",
    "change the color of the {thing} to {colour}",
    "change the colour of the {thing} to {colour}",
    "recolour the {thing} {colour}",
    "the {thing} should be {colour}",
    "i want the {thing} to be {colour}",
    "let the {thing} become {colour}",
)
REMOVE = (
    "remove the {thing}",
    "delete the {thing}",
    "erase the {thing}",
    "take away the {thing}",
    "get rid of the {thing}",
    "make the {thing} disappear",
    "take the {thing} out",
)
REPLACE = (
    "turn the {thing} into a {other}",
    "replace the {thing} with a {other}",
    "change the {thing} into a {other}",
    "make the {thing} a {other}",
    "swap the {thing} for a {other}",
)
EVERYTHING = (
    "make everything {old} {colour}",
    "turn everything {old} {colour}",
    "change {old} to {colour}",
    "turn all {old} things {colour}",
    "replace {old} with {colour}",
)
GLOBAL: dict[str, tuple[str, ...]] = {
    "black and white": (
        "make it black and white",
        "turn the video black and white",
        "convert to grayscale",
        "remove all color",
        "make the picture gray",
        "make it grey",
    ),
    "sepia": ("make it sepia", "turn the video sepia", "give it an old sepia look", "sepia tone"),
    "warmer": (
        "make it warmer",
        "warm up the colors",
        "give it a warm look",
        "make the light warm",
    ),
    "cooler": (
        "make it cooler",
        "cool down the colors",
        "give it a cold look",
        "make the light cold",
    ),
    "brighter": ("make it brighter", "brighten the video", "more light", "make the scene bright"),
    "darker": ("make it darker", "darken the video", "less light", "make the scene dark"),
    "night": ("make it night", "turn day into night", "make it look like night", "night scene"),
}
# Words for coloured regions of real footage, where nobody knows what the region is.
REGION_NOUNS = (
    "thing", "object", "box", "part", "area", "surface", "shirt", "jacket", "car", "flower",
    "flowers", "leaves", "sky", "wall", "bird", "toy", "bag", "cup", "book", "ball", "package",
    "sign", "coat", "plant", "fruit", "clothes", "case", "light", "carton",
)  # fmt: skip
# The "box" names a printed carton; a flat square is called so.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "sphere"),
    "box": ("box", "box", "box", "package", "carton"),
    "ring": ("ring", "ring", "donut"),
    "cross": ("cross", "plus"),
}
ANYTHING = ("thing", "object", "one")


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def invented(rng: np.random.Generator) -> str:
    """A word that means nothing, so that unknown words come to mean nothing."""
    syllables = int(rng.integers(1, 4))
    parts = [
        pick(rng, tuple("bcdfghklmnprstvwz")) + pick(rng, tuple("aeiou")) for _ in range(syllables)
    ]
    return "".join(parts) + pick(rng, ("", "n", "r", "l", "s", "t", "ck", "ing", "y"))


def region(rng: np.random.Generator, colour: str) -> str:
    """Words for a coloured region of real footage."""
    noun = pick(rng, REGION_NOUNS) if rng.random() < 0.85 else invented(rng)
    extra = f"{invented(rng)} " if rng.random() < 0.1 else ""
    return f"{colour} {extra}{noun}"


def noun_of(rng: np.random.Generator, shape: str) -> str:
    """A word for a shape, now and then behind one that means nothing."""
    noun = pick(rng, SYNONYMS.get(shape, (shape,)))
    return f"{invented(rng)} {noun}" if rng.random() < 0.04 else noun


def thing(
    rng: np.random.Generator,
    colour: str,
    shape: str,
    *,
    unique_colour: bool,
    unique_shape: bool,
    by_shape: float = 0.15,
) -> str:
    """Name an object so that nobody can mistake it for another one of its scene.

    Args:
        by_shape: share of names without a colour, where the shape is the only one of its kind.
    """
    noun = noun_of(rng, shape)
    roll = rng.random()
    if unique_colour and roll < 0.12:
        return f"{colour} {pick(rng, ANYTHING)}"
    if unique_shape and roll > 1 - by_shape:
        return noun
    return f"{colour} {noun}"


def rephrase(rng: np.random.Generator, edit: Mapping[str, str]) -> str:
    """Another instruction for the same edit of a coded scene, naming the object as surely.

    An object that was named without its colour is the only one of its shape, and may be again; one
    that was named by its colour alone, the only one of it. Edits of footage and of the whole
    picture keep their words.
    """
    templates = {"recolour": RECOLOUR, "remove": REMOVE}.get(edit["kind"])
    if templates is None:
        return edit["instruction"]
    words = set(edit["instruction"].split())
    by_colour = edit["colour"] in words
    alone = by_colour and not words.isdisjoint(ANYTHING) and rng.random() < 0.7
    noun = pick(rng, ANYTHING) if alone else noun_of(rng, edit["shape"])
    name = f"{edit['colour']} {noun}" if by_colour or rng.random() < 0.4 else noun
    return pick(rng, templates).format(thing=name, colour=edit["new_colour"])


def everything() -> list[str]:
    """Every phrase with every slot word at least once: the tokenizer's corpus."""
    from liveedit.distill.objects import SHAPES
    from liveedit.distill.palette import COLOURS

    nouns = sorted({*SHAPES, *REGION_NOUNS, *(s for v in SYNONYMS.values() for s in v), "one"})
    out = [phrase for group in GLOBAL.values() for phrase in group]
    for i, noun in enumerate(nouns):
        for j, colour in enumerate(COLOURS):
            other = COLOURS[(i + j + 1) % len(COLOURS)]
            what = f"{colour} {noun}"
            out += [t.format(thing=what, colour=other) for t in RECOLOUR]
            out += [t.format(thing=what) for t in REMOVE]
            swap = nouns[(i + j + 1) % len(nouns)]
            out += [t.format(thing=what, other=f"{other} {swap}") for t in REPLACE]
            out += [t.format(old=colour, colour=other) for t in EVERYTHING]
    return out
