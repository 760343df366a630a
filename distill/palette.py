"""The nine colour names that the editor knows: anchors, repainting, and naming of a colour."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# name -> hue in degrees, saturation, value
ANCHORS: dict[str, tuple[float, float, float]] = {
    "red": (357.0, 0.86, 0.84),
    "orange": (25.0, 0.90, 0.95),
    "yellow": (50.0, 0.85, 0.94),
    "green": (128.0, 0.72, 0.64),
    "blue": (218.0, 0.80, 0.86),
    "purple": (278.0, 0.64, 0.70),
    "pink": (332.0, 0.48, 0.97),
    "black": (220.0, 0.10, 0.13),
    "white": (50.0, 0.03, 0.95),
}
COLOURS = tuple(ANCHORS)
CHROMATIC = tuple(name for name in COLOURS if name not in ("black", "white"))


def hsv_to_rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """Hue in degrees, saturation and value in [0, 1], any one shape -> RGB [..., 3] in [0, 1]."""
    sector = (np.asarray([5.0, 3.0, 1.0], np.float32) + hue[..., None] / 60.0) % 6.0
    ramp = np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0)
    rgb: Array = value[..., None] * (1.0 - saturation[..., None] * ramp)
    return rgb


def rgb_to_hsv(rgb: Array) -> tuple[Array, Array, Array]:
    """RGB [..., 3] in [0, 1] -> hue in degrees [0, 360), saturation, value."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value = np.maximum(np.maximum(r, g), b)  # numpy reduces an axis of three slowly
    chroma = value - np.minimum(np.minimum(r, g), b)
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(
        value == r, (g - b) / safe, np.where(value == g, 2.0 + (b - r) / safe, 4.0 + (r - g) / safe)
    )
    hue = np.where(chroma > 1e-6, hue * 60.0 % 360.0, 0.0)
    return hue, chroma / np.maximum(value, 1e-6), value


def anchor_rgb(name: str) -> Array:
    """The colour itself, float32 [3] in [0, 1]."""
    hue, saturation, value = (np.float32(v) for v in ANCHORS[name])
    return hsv_to_rgb(np.asarray(hue), np.asarray(saturation), np.asarray(value))


def jittered_rgb(name: str, rng: np.random.Generator) -> Array:
    """A colour near the anchor that people would still call by its name, float32 [3]."""
    hue, saturation, value = ANCHORS[name]
    spread = 6.0 if name in CHROMATIC else 60.0
    hue = (hue + rng.uniform(-spread, spread)) % 360.0
    saturation = float(np.clip(saturation + rng.uniform(-0.12, 0.1), 0.0, 1.0))
    if name in ("black", "white"):
        saturation = min(saturation, 0.15 if name == "black" else 0.05)
    value = float(np.clip(value + rng.uniform(-0.08, 0.05), 0.05, 1.0))
    parts = (np.asarray(v, np.float32) for v in (hue, saturation, value))
    return hsv_to_rgb(*parts)


def hue_distance(hue: Array, centre: float) -> Array:
    """Smallest angle between hues, in degrees [0, 180]."""
    return np.asarray(np.abs((hue - centre + 180.0) % 360.0 - 180.0))


def colour_band(rgb: Array, name: str) -> Array:
    """How surely each pixel of a real picture has a chromatic colour name.

    Args:
        rgb: [..., 3] in [0, 1].
        name: one of `CHROMATIC`.

    Returns:
        Soft weight [...] in [0, 1]: exactly 0 outside the band, so that the rest stays untouched.
    """
    hue, saturation, value = rgb_to_hsv(rgb)
    centre, _, _ = ANCHORS[name]
    width = {"orange": 11.0, "yellow": 15.0, "red": 14.0, "pink": 18.0}.get(name, 32.0)
    by_hue = np.clip((width + 7.0 - hue_distance(hue, centre)) / 7.0, 0.0, 1.0)
    # Orange and pink include skin unless they are vivid; pale pixels of other hues are still named.
    least = {"orange": 0.55, "pink": 0.30, "yellow": 0.38, "red": 0.5}.get(name, 0.28)
    by_saturation = np.clip((saturation - least) / 0.12, 0.0, 1.0)
    by_value = np.clip((value - 0.16) / 0.12, 0.0, 1.0)
    return np.asarray(by_hue * by_saturation * by_value, np.float32)


def repaint(rgb: Array, name_from: str, name_to: str) -> Array:
    """The same surface in another paint: hue replaced, saturation and value scaled.

    Shading and small hue differences survive. Float32 [..., 3] in [0, 1], new memory.
    """
    hue, saturation, value = rgb_to_hsv(rgb)
    hue_from, saturation_from, value_from = ANCHORS[name_from]
    hue_to, saturation_to, value_to = ANCHORS[name_to]
    offset = (hue - hue_from + 180.0) % 360.0 - 180.0
    new_hue = (hue_to + 0.4 * offset) % 360.0
    new_saturation = np.clip(saturation * (saturation_to / saturation_from), 0.0, 1.0)
    if name_to in CHROMATIC:
        new_value = value * (value_to / value_from) ** 0.7
    else:
        new_value = value * (value_to / value_from)
    new_value = np.clip(new_value, 0.0, 1.0)
    return hsv_to_rgb(
        np.asarray(new_hue, np.float32),
        np.asarray(new_saturation, np.float32),
        np.asarray(new_value, np.float32),
    )


def to_lab(rgb: Array) -> Array:
    """sRGB [..., 3] in [0, 1] -> CIE L*a*b* (D65), float32 [..., 3]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.asarray(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / np.asarray([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    lightness = 116.0 * f[..., 1] - 16.0
    a, b = 500.0 * (f[..., 0] - f[..., 1]), 200.0 * (f[..., 1] - f[..., 2])
    return np.stack((lightness, a, b), axis=-1).astype(np.float32)


def nearest_colour(rgb: Array) -> str:
    """Name of one colour [3] in [0, 1]: the nearest anchor in Lab, lightness counted half.

    Half, because shading moves lightness while the name stays.
    """
    weight = np.asarray([0.5, 1.0, 1.0], np.float32)
    anchors = np.stack([to_lab(anchor_rgb(name)) for name in COLOURS])
    distance = np.linalg.norm((anchors - to_lab(np.asarray(rgb, np.float32))) * weight, axis=-1)
    return COLOURS[int(distance.argmin())]
