"""Backgrounds that move: a camera over a photograph, a window of a real clip, a plain table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]


class Footage(Protocol):
    """Real pictures to draw backgrounds from."""

    @property
    def photos(self) -> Sequence[Bytes]:
        """Photographs, each [H, W, 3]."""
        ...

    @property
    def clips(self) -> Sequence[Bytes]:
        """Clips, each [T, H, W, 3]."""
        ...


def camera_over_photo(
    rng: np.random.Generator, photo: Bytes, num_frames: int, height: int, width: int
) -> Bytes:
    """Pan, zoom, turn and shake over a photograph. [T, height, width, 3]; still in one of four."""
    image = Image.fromarray(photo)
    zoom = rng.uniform(1.05, 2.4)  # picture size in units of the smallest that covers the frame
    scale = max(width / image.width, height / image.height) * zoom
    image = image.resize(
        (max(round(image.width * scale), width), max(round(image.height * scale), height)),
        Image.Resampling.LANCZOS,
    )
    # Turning looks a little past the edge: mirrored pixels there instead of black corners.
    border = 16
    padded = np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), "reflect")
    image = Image.fromarray(padded)
    time = np.arange(num_frames) / 24.0
    moving = rng.random() > 0.25
    amount = 1.0 if moving else 0.0
    room_x, room_y = image.width - width - 2 * border, image.height - height - 2 * border
    x = border + rng.uniform(0, room_x) + amount * rng.normal(0, 0.18) * width * time
    y = border + rng.uniform(0, room_y) + amount * rng.normal(0, 0.12) * height * time
    shake = amount * rng.uniform(0, 1.2)
    x = x + shake * np.sin(rng.uniform(3, 9) * time + rng.uniform(0, 6))
    y = y + shake * np.sin(rng.uniform(3, 9) * time + rng.uniform(0, 6))
    turn = amount * rng.normal(0, 0.04) * time
    grow = 1.0 - amount * rng.uniform(-0.06, 0.12) * time
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        cos, sin = grow[t] * np.cos(turn[t]), grow[t] * np.sin(turn[t])
        centre_x = np.clip(x[t], border, border + room_x) + width / 2
        centre_y = np.clip(y[t], border, border + room_y) + height / 2
        left = centre_x - cos * width / 2 + sin * height / 2
        top = centre_y - sin * width / 2 - cos * height / 2
        frames[t] = np.asarray(
            image.transform(
                (width, height),
                Image.Transform.AFFINE,
                (cos, -sin, left, sin, cos, top),
                Image.Resampling.BICUBIC,
            )
        )
    return frames


def window_of_clip(
    rng: np.random.Generator, clip: Bytes, num_frames: int, height: int, width: int
) -> Bytes:
    """A random crop and span of a real clip, mirrored half of the time. [T, height, width, 3].

    A clip that is too short is played forwards and backwards.
    """
    length, clip_height, clip_width, _ = clip.shape
    start = int(rng.integers(max(length - num_frames, 0) + 1))
    index = (start + np.arange(num_frames)) % max(2 * length - 2, 1)
    index = np.where(index >= length, 2 * length - 2 - index, index)
    if rng.random() < 0.25:
        index = index[::-1]
    cover = max(width / clip_width, height / clip_height)
    crop_width = min(clip_width, round(width / cover * rng.uniform(0.6, 1.0)))
    crop_height = min(clip_height, round(crop_width * height / width))
    left = int(rng.integers(clip_width - crop_width + 1))
    top = int(rng.integers(clip_height - crop_height + 1))
    box = (left, top, left + crop_width, top + crop_height)
    mirrored = rng.random() < 0.5
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t, i in enumerate(index):
        frame = Image.fromarray(clip[i]).resize((width, height), Image.Resampling.BICUBIC, box=box)
        frames[t] = np.asarray(frame)[:, ::-1] if mirrored else np.asarray(frame)
    return frames


def table(rng: np.random.Generator, num_frames: int, height: int, width: int) -> Bytes:
    """A nearly plain surface against a darker wall, under uneven light. [T, height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height - 0.5, x / width - 0.5
    horizon = rng.uniform(-0.7, 0.2) + rng.normal(0, 0.2) * x
    near = rng.uniform(0.35, 0.95) * (1 + rng.normal(0, 0.05, 3))
    far = rng.uniform(0.05, 0.8) * (1 + rng.normal(0, 0.12, 3))
    blend = np.clip((y - horizon) * rng.uniform(8, 80), 0, 1)[..., None]
    light = 1 + rng.normal(0, 0.25) * x + rng.normal(0, 0.25) * y
    picture = (blend * near + (1 - blend) * far) * light[..., None]
    coarse = Image.fromarray(rng.normal(0, 1, (9, 14)).astype(np.float32))
    stains = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    picture = picture + 0.02 * stains[..., None] + rng.normal(0, 0.006, (height, width, 1))
    still = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return np.repeat(still[None], num_frames, axis=0)


def background(
    rng: np.random.Generator,
    footage: Footage,
    num_frames: int,
    height: int,
    width: int,
    *,
    real_only: bool = False,
) -> tuple[Bytes, str]:
    """One background [T, height, width, 3] and what it is: photo, clip or table."""
    roll = rng.random()
    if len(footage.clips) and (roll < 0.3 or not len(footage.photos)):
        clip = footage.clips[int(rng.integers(len(footage.clips)))]
        return window_of_clip(rng, clip, num_frames, height, width), "clip"
    if not real_only and (roll > 0.86 or not len(footage.photos)):
        return table(rng, num_frames, height, width), "table"
    photo = footage.photos[int(rng.integers(len(footage.photos)))]
    return camera_over_photo(rng, photo, num_frames, height, width), "photo"
