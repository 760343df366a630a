"""Edits with exact results that are drawn without anything but what ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from liveedit.distill.edits import Edit, SceneConfig, Split, make_scene
from liveedit.distill.scenes import Footage, table
from liveedit.evaluation.known_edits import KnownEdit
from liveedit.evaluation.quality import Bytes
from liveedit.runtime.shipped import shipped
from liveedit.runtime.video_reader import VideoReader

_PICTURES = 8  # of each sort that a split's generated backgrounds are cut from


@dataclass(frozen=True)
class GeneratedFootage:
    """Photographs [H, W, 3] and clips [T, H, W, 3] that need no download."""

    photos: Sequence[Bytes]
    clips: Sequence[Bytes]


def fractal_picture(rng: np.random.Generator, height_px: int, width_px: int) -> Bytes:
    """Clouds of colour with the spectrum of photographs, [H, W, 3]."""
    down = np.fft.fftfreq(height_px)[:, None]
    across = np.fft.rfftfreq(width_px)[None]
    distance = np.maximum(np.hypot(down, across), 1.0 / max(height_px, width_px))
    layers = []
    for _ in range(3):
        noise = np.fft.rfft2(rng.standard_normal((height_px, width_px))) / distance**1.2
        layer = np.fft.irfft2(noise, s=(height_px, width_px))
        layers.append((layer - layer.mean()) / layer.std())
    light, *tints = layers
    channels = [light + 0.35 * tints[0], light - 0.2 * sum(tints), light + 0.35 * tints[1]]
    picture = rng.uniform(0.3, 0.6, 3) + rng.uniform(0.1, 0.2) * np.stack(channels, axis=-1)
    return np.asarray(np.clip(picture, 0, 1) * 255, np.uint8)


def generated_footage(split: Split, height_px: int, width_px: int) -> GeneratedFootage:
    """Backgrounds of one split. The shipped real clip is held out; the splits share no picture."""
    rng = np.random.default_rng(11 if split == "train" else 12)
    size = (height_px * 3 // 2, width_px * 3 // 2)
    photos = [table(rng, 1, *size)[0] for _ in range(_PICTURES)]
    photos += [fractal_picture(rng, *size) for _ in range(_PICTURES)]
    clips = []
    if split == "held_out":
        with VideoReader(shipped("clip.mp4")) as reader:
            clips = [np.stack([frame.image for frame in reader.frames()])]
    return GeneratedFootage(photos=photos, clips=clips)


def known_edits(
    count: int,
    footage: Footage,
    config: SceneConfig,
    first_seed: int = 0,
    kinds: Sequence[str] = (),
) -> list[KnownEdit]:
    """``count`` edits, of ``kinds`` alone if given, from as many scenes as they need.

    Equal arguments, equal bytes.
    """
    found: list[KnownEdit] = []
    seed = first_seed
    while len(found) < count:
        scene = make_scene(seed, footage, config)
        found += [
            _known(f"scene {seed}.{i}", scene.source, edit)
            for i, edit in enumerate(scene.edits)
            if not kinds or edit.kind in kinds
        ]
        seed += 1
    return found[:count]


def _known(name: str, source: Bytes, edit: Edit) -> KnownEdit:
    return KnownEdit(
        name=name,
        kind=edit.kind,
        prompt=edit.instruction,
        source=source,
        target=edit.target,
        mask=edit.mask,
        new_colour=edit.new_colour,
    )
