"""Moving objects that can be named: shaded shapes, printed boxes, and hands that cover them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

SHAPES = ("ball", "square", "triangle", "star", "ring", "heart", "cross", "diamond", "box")
Size = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True)
class Layer:
    """One object over time, before it has a colour.

    Attributes:
        alpha: [T, H, W] coverage in [0, 1], exactly 0 where the object is not.
        paint: [T, H, W] share of the surface that carries the paint; the rest is printed.
        shade: [T, H, W] factor on the surface colour.
        gloss: [T, H, W] white added on top.
        printed: [T, H, W, 3] or [3], colour of the unpainted surface in [0, 1].
    """

    alpha: Array
    paint: Array
    shade: Array
    gloss: Array
    printed: Array

    def over(self, frames: Array, colour: Array) -> Array:
        """Draw on frames [T, H, W, 3] in [0, 1] with paint ``colour`` [3]; new memory."""
        paint = self.paint[..., None]
        surface = (paint * colour + (1.0 - paint) * self.printed) * self.shade[..., None]
        surface = np.clip(surface + self.gloss[..., None], 0.0, 1.0)
        alpha = self.alpha[..., None]
        return np.asarray(frames + alpha * (surface - frames), np.float32)


@dataclass(frozen=True)
class Pose:
    """Where an object is: centre in pixels [T], radius in pixels [T], angle in radians [T]."""

    x: Array
    y: Array
    radius: Array
    angle: Array


def random_pose(rng: np.random.Generator, size: Size, radius: tuple[float, float]) -> Pose:
    """Smooth travel mostly inside the frame, with a slow turn and a slow change of size."""
    num_frames, height, width = size
    time = np.arange(num_frames) / 24.0
    r = rng.uniform(*radius)
    xy = []
    for extent in (width, height):
        start = rng.uniform(0.7 * r, max(extent - 0.7 * r, 0.7 * r + 1))
        speed = rng.normal(0.0, 0.16 * width)
        wave = rng.uniform(0, 0.06 * width) * np.sin(
            rng.uniform(1, 5) * time + rng.uniform(0, 2 * np.pi)
        )
        path = start + speed * time + wave
        # Reflect at the borders so that the object stays mostly in sight.
        low, high = 0.5 * r, max(extent - 0.5 * r, 0.5 * r + 1)
        span = high - low
        phase = (path - low) % (2 * span)
        xy.append(low + np.where(phase > span, 2 * span - phase, phase))
    growth = 1.0 + rng.normal(0, 0.1) * time
    angle = rng.uniform(-0.4, 0.4) + rng.normal(0, 0.5) * time
    return Pose(
        x=np.asarray(xy[0], np.float32),
        y=np.asarray(xy[1], np.float32),
        radius=np.asarray(r * np.clip(growth, 0.6, 1.5), np.float32),
        angle=np.asarray(angle, np.float32),
    )


def _local(pose: Pose, size: Size) -> tuple[Array, Array]:
    """Pixel grid in the object's own frame: two [T, H, W], radius = 1, y down."""
    _, height, width = size
    dx = np.arange(width, dtype=np.float32) - pose.x[:, None, None]
    dy = np.arange(height, dtype=np.float32)[None, :, None] - pose.y[:, None, None]
    cos, sin = np.cos(pose.angle)[:, None, None], np.sin(pose.angle)[:, None, None]
    r = pose.radius[:, None, None]
    return (dx * cos + dy * sin) / r, (dy * cos - dx * sin) / r


def _polygon(x: Array, y: Array, vertices: Array) -> Array:
    """Signed distance to a simple polygon [n, 2], negative inside."""
    distance = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        distance = np.minimum(distance, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        if by != ay:
            crosses = (y >= ay) != (y >= by)
            inside ^= crosses & (x < ax + (y - ay) * (ex / (by - ay)))
    distance = np.sqrt(distance)
    return np.where(inside, -distance, distance)


def _regular(points: int, inner: float | None = None, turn: float = -np.pi / 2) -> Array:
    """Vertices on the unit circle; with ``inner``, a star."""
    count = points if inner is None else 2 * points
    angles = turn + 2 * np.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2 == 0, 1.0, inner or 1.0)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=-1).astype(np.float32)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 25)[:-1]
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack((x / 17, -y / 17), axis=-1).astype(np.float32)


def distance_to(shape: str, x: Array, y: Array) -> Array:
    """Signed distance of a flat shape in its own units, negative inside."""
    if shape == "ball":
        return np.hypot(x, y) - 1.0
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.28
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 1.0, ay - 0.33), np.maximum(ax - 0.33, ay - 1.0))
    if shape == "triangle":
        return _polygon(x, y, _regular(3) * 1.1)
    if shape == "star":
        return _polygon(x, y, _regular(5, 0.45) * 1.1)
    if shape == "diamond":
        return _polygon(x, y, _regular(4) * np.asarray([0.75, 1.1], np.float32))
    assert shape == "heart", shape
    return _polygon(x, y, _heart())


def flat_layer(rng: np.random.Generator, shape: str, pose: Pose, size: Size) -> Layer:
    """A shape with soft light, a darker rim, and sometimes stripes or spots."""
    x, y = _local(pose, size)
    distance = distance_to(shape, x, y)
    pixels = distance * pose.radius[:, None, None]
    alpha = np.clip(0.5 - pixels, 0.0, 1.0).astype(np.float32)
    light = rng.uniform(0, 2 * np.pi)
    towards = x * np.cos(light) + y * np.sin(light)
    gloss = np.zeros_like(alpha)
    if shape == "ball":
        height = np.sqrt(np.clip(1.0 - x * x - y * y, 0.0, 1.0))
        shade = 0.55 + 0.45 * np.clip(0.75 * height + 0.5 * towards, 0.0, 1.2)
        spot = (x - 0.45 * np.cos(light)) ** 2 + (y - 0.45 * np.sin(light)) ** 2
        gloss = (rng.uniform(0.1, 0.5) * np.exp(-spot / 0.05)).astype(np.float32)
    else:
        shade = 1.0 + 0.18 * np.clip(towards, -1, 1)
    rim = rng.uniform(0.0, 0.45) * np.clip(1.0 + pixels / 2.5, 0.0, 1.0)
    shade = (shade * (1.0 - rim)).astype(np.float32)
    paint = np.ones_like(alpha)
    style = rng.random()
    if style < 0.2:  # stripes
        wave = np.sin((x * np.cos(light + 1) + y * np.sin(light + 1)) * rng.uniform(5, 9))
        paint = (1.0 - rng.uniform(0.3, 0.8) * (wave > 0.75)).astype(np.float32)
    elif style < 0.3:  # spots
        n = rng.uniform(4, 7)
        paint = (1.0 - 0.7 * (np.sin(x * n) * np.sin(y * n) > 0.72)).astype(np.float32)
    printed = np.full(3, rng.choice([0.08, 0.92]), np.float32)
    return Layer(alpha, paint, shade, gloss, printed)


def box_print(rng: np.random.Generator, photo: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Printed face of a carton: paint share [64, 64] and print [64, 64, 3]."""
    n = 64
    paint = np.ones((n, n), np.float32)
    printed = np.zeros((n, n, 3), np.float32)
    rows, columns = np.mgrid[0:n, 0:n]
    if rng.random() < 0.6:  # a picture, in a rectangle or an oval
        height, width = photo.shape[:2]
        top, left = int(rng.integers(max(height - n, 1))), int(rng.integers(max(width - n, 1)))
        patch = photo[top : top + n, left : left + n].astype(np.float32) / 255.0
        printed[: patch.shape[0], : patch.shape[1]] = patch
        half = rng.uniform(0.2, 0.36, 2) * n
        dy, dx = np.abs(rows - n / 2) / half[0], np.abs(columns - n / 2) / half[1]
        inside = np.maximum(dy, dx) < 1 if rng.random() < 0.5 else dy**2 + dx**2 < 1
        paint[inside] = 0.0
    for _ in range(int(rng.integers(0, 5))):  # lines of writing
        row, left = int(rng.integers(3, n - 6)), int(rng.integers(2, n // 2))
        right = int(rng.integers(left + 6, n - 2))
        line = (rng.random(n) < 0.7)[left:right]
        tone = rng.choice([0.05, 0.95]) if rng.random() < 0.7 else rng.random(3) * 0.9
        for r in range(row, row + int(rng.integers(2, 5))):
            printed[r, left:right][line] = tone
            paint[r, left:right][line] = 0.1
    if rng.random() < 0.5:  # ornaments along the border
        edge = np.minimum.reduce([rows, columns, n - 1 - rows, n - 1 - columns])
        pattern = (edge > 2) & (edge < 8) & (np.sin(rows * 0.9) * np.sin(columns * 0.9) > 0.25)
        printed[pattern] = rng.random(3)
        paint[pattern] = 0.3
    # Print is finer than the picture's pixels: blurred, it does not flicker as the box turns.
    soft = _blur(np.concatenate((paint[..., None], printed), axis=-1))
    return soft[..., 0], soft[..., 1:]


def _blur(texture: Array) -> Array:
    """3 x 3 mean over the first two axes, edges repeated."""
    for axis in (0, 1):
        first, last = texture.take([0], axis), texture.take([-1], axis)
        rest = texture.shape[axis] - 1
        before = np.concatenate((first, texture.take(range(rest), axis)), axis)
        after = np.concatenate((texture.take(range(1, rest + 1), axis), last), axis)
        texture = (before + texture + after) / np.float32(3)
    return texture


def box_layer(rng: np.random.Generator, pose: Pose, size: Size, photo: NDArray[np.uint8]) -> Layer:
    """A printed carton turning in space: three visible faces under parallel projection."""
    num_frames, height, width = size
    half = np.sort(rng.uniform([0.25, 0.5, 0.75], [0.55, 0.85, 1.1]))[rng.permutation(3)]
    yaw = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.25) * np.arange(num_frames) / 24
    pitch = rng.uniform(0.3, 1.1) + rng.normal(0, 0.12) * np.arange(num_frames) / 24
    shape = (num_frames, height, width)
    coverage = np.zeros(shape, np.float32)
    paint, shade = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    printed = np.zeros((*shape, 3), np.float32)
    prints = [box_print(rng, photo) for _ in range(3)]
    light = rng.uniform(0.55, 1.05, 3)
    grid_y, grid_x = np.mgrid[0:height, 0:width].astype(np.float32)
    for t in range(num_frames):
        cy, sy = np.cos(yaw[t]), np.sin(yaw[t])
        cp, sp = np.cos(pitch[t]), np.sin(pitch[t])
        cr, sr = np.cos(pose.angle[t]), np.sin(pose.angle[t])
        turn = np.asarray([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        tilt = np.asarray([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        roll = np.asarray([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        axes = (roll @ tilt @ turn) * half * pose.radius[t]  # columns: half edges in pixels
        for face in range(3):
            a, b = axes[:, (face + 1) % 3], axes[:, (face + 2) % 3]
            centre = axes[:, face] * (1.0 if axes[2, face] > 0 else -1.0)
            det = a[0] * b[1] - a[1] * b[0]
            if abs(det) < 4.0:  # seen edge-on
                continue
            reach = np.abs(a[:2]) + np.abs(b[:2]) + 2
            x0, y0 = pose.x[t] + centre[0], pose.y[t] + centre[1]
            left, right = max(int(x0 - reach[0]), 0), min(int(x0 + reach[0]) + 2, width)
            top, bottom = max(int(y0 - reach[1]), 0), min(int(y0 + reach[1]) + 2, height)
            if left >= right or top >= bottom:
                continue
            area = (t, slice(top, bottom), slice(left, right))
            dx, dy = grid_x[area[1:]] - x0, grid_y[area[1:]] - y0
            u, v = (dx * b[1] - dy * b[0]) / det, (dy * a[0] - dx * a[1]) / det
            inside = np.minimum(
                (1 - np.abs(u)) * abs(det) / np.hypot(b[0], b[1]),
                (1 - np.abs(v)) * abs(det) / np.hypot(a[0], a[1]),
            )
            alpha = np.clip(inside + 0.5, 0.0, 1.0).astype(np.float32)
            row = np.clip((u + 1) * 32, 0, 63).astype(np.intp)
            column = np.clip((v + 1) * 32, 0, 63).astype(np.intp)
            face_paint, face_print = prints[face]
            coverage[area] += alpha
            paint[area] += alpha * face_paint[row, column]
            shade[area] += alpha * np.float32(light[face])
            printed[area] += alpha[..., None] * face_print[row, column]
    # Neighbouring faces share their edge pixels: averaging them leaves no seam.
    share = np.maximum(coverage, 1e-6)
    return Layer(
        alpha=np.minimum(coverage, 1.0),
        paint=paint / share,
        shade=shade / share,
        gloss=np.zeros(shape, np.float32),
        printed=printed / share[..., None],
    )


def object_layer(
    rng: np.random.Generator, shape: str, pose: Pose, size: Size, photo: NDArray[np.uint8]
) -> Layer:
    if shape == "box":
        return box_layer(rng, pose, size, photo)
    return flat_layer(rng, shape, pose, size)


def hand_layer(rng: np.random.Generator, pose: Pose, size: Size) -> tuple[Layer, Array]:
    """An arm from the border that holds an object with a few fingers, and its skin tone [3]."""
    num_frames, height, width = size
    grid_y, grid_x = np.mgrid[0:height, 0:width].astype(np.float32)
    side = -1.0 if rng.random() < 0.5 else 1.0
    lean = rng.uniform(-0.6, 0.6)
    thick = float(pose.radius.mean()) * rng.uniform(0.28, 0.42)
    hold_x = pose.x + side * pose.radius * rng.uniform(0.75, 1.0)
    hold_y = pose.y + pose.radius * rng.uniform(-0.6, 0.5)
    distance = np.full((num_frames, height, width), np.inf, np.float32)

    def capsule(ax: Array, ay: Array, bx: Array, by: Array, radius: float) -> None:
        px, py = grid_x - ax[:, None, None], grid_y - ay[:, None, None]
        ex, ey = (bx - ax)[:, None, None], (by - ay)[:, None, None]
        t = np.clip((px * ex + py * ey) / np.maximum(ex * ex + ey * ey, 1e-3), 0.0, 1.0)
        np.minimum(distance, np.hypot(px - ex * t, py - ey * t) - radius, out=distance)

    capsule(hold_x, hold_y, hold_x + side * 260, hold_y + 260 * lean, thick)
    for finger in range(int(rng.integers(2, 5))):
        start_y = hold_y + (finger - 1.5) * 0.55 * thick
        capsule(
            hold_x, start_y, hold_x - side * thick * rng.uniform(0.9, 1.9), start_y, 0.3 * thick
        )
    alpha = np.clip(0.5 - distance, 0.0, 1.0)
    shade = 0.75 + 0.3 * np.clip(-distance / thick, 0.0, 1.0)
    tone = np.asarray([0.93, 0.72, 0.58], np.float32) * rng.uniform(0.4, 1.05)
    ones, zeros = np.ones_like(alpha), np.zeros_like(alpha)
    return Layer(alpha, ones, shade, zeros, np.zeros(3, np.float32)), np.clip(tone, 0, 1)
