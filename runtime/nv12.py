"""NV12 frames and RGB: the rule that the device kernels follow bit for bit. Host numpy.

A frame of NV12 is H rows of Y, then H/2 rows of interleaved U and V, each pair shared by 2 x 2
pixels: uint8 [H * 3/2, W], H and W even. Arithmetic is float32, rounded after every operation, and
results are rounded to the nearest byte, ties to even. The order of operations is part of the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float32]
Matrix = Literal["bt601", "bt709"]


@dataclass(frozen=True)
class ColorMatrix:
    """The numbers of one matrix and range."""

    red: np.float32  # weights of luma
    green: np.float32
    blue: np.float32
    y_offset: np.float32
    y_scale: np.float32  # luma 0..255 -> Y
    u_scale: np.float32  # blue - luma -> U - 128
    v_scale: np.float32
    y_gain: np.float32  # Y - y_offset -> luma 0..255
    red_v: np.float32
    green_u: np.float32
    green_v: np.float32
    blue_u: np.float32

    @classmethod
    def of(cls, matrix: Matrix, *, full_range: bool) -> ColorMatrix:
        """``full_range``: Y, U and V use all of 0..255; else Y 16..235, U and V 16..240."""
        red, blue = (0.2126, 0.0722) if matrix == "bt709" else (0.299, 0.114)
        green = 1 - red - blue
        luma, chroma = (1.0, 1.0) if full_range else (219.0 / 255, 224.0 / 255)
        numbers = (
            red,
            green,
            blue,
            0.0 if full_range else 16.0,
            luma,
            chroma / (2 * (1 - blue)),
            chroma / (2 * (1 - red)),
            1 / luma,
            2 * (1 - red) / chroma,
            2 * blue * (1 - blue) / green / chroma,
            2 * red * (1 - red) / green / chroma,
            2 * (1 - blue) / chroma,
        )
        return cls(*(np.float32(x) for x in numbers))


def nv12_to_rgb(frames: Bytes, color: ColorMatrix) -> Bytes:
    """uint8 [n, H * 3/2, W] NV12 -> uint8 [n, H, W, 3], new memory. Chroma is not interpolated."""
    n, rows, width = frames.shape
    height = rows * 2 // 3
    y = (frames[:, :height].astype(np.float32) - color.y_offset) * color.y_gain
    chroma = frames[:, height:].reshape(n, height // 2, width // 2, 2).astype(np.float32)
    chroma = (chroma - np.float32(128)).repeat(2, axis=1).repeat(2, axis=2)
    u, v = chroma[..., 0], chroma[..., 1]
    red = y + v * color.red_v
    green = (y - u * color.green_u) - v * color.green_v
    blue = y + u * color.blue_u
    return _bytes(np.stack([red, green, blue], axis=-1))


def rgb_to_nv12(frames: Bytes, color: ColorMatrix) -> Bytes:
    """uint8 [n, H, W, 3] -> uint8 [n, H * 3/2, W] NV12, new memory; U and V of 2 x 2 means."""
    n, height, width, _ = frames.shape
    rgb = frames.astype(np.float32)
    y = color.y_offset + color.y_scale * _luma(rgb, color)
    mean = rgb.reshape(n, height // 2, 2, width // 2, 2, 3).sum(axis=(2, 4)) * np.float32(0.25)
    luma = _luma(mean, color)
    u = np.float32(128) + color.u_scale * (mean[..., 2] - luma)
    v = np.float32(128) + color.v_scale * (mean[..., 0] - luma)
    out = np.empty((n, height + height // 2, width), dtype=np.uint8)
    out[:, :height] = _bytes(y)
    out[:, height:] = _bytes(np.stack([u, v], axis=-1)).reshape(n, height // 2, width)
    return out


def _luma(rgb: Float, color: ColorMatrix) -> Float:
    total = color.red * rgb[..., 0] + color.green * rgb[..., 1] + color.blue * rgb[..., 2]
    return np.asarray(total, dtype=np.float32)


def _bytes(x: Float) -> Bytes:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
