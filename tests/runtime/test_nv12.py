"""NV12 conversion against swscale and against its own inverse."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from liveedit.runtime.nv12 import ColorMatrix, Matrix, nv12_to_rgb, rgb_to_nv12

Array = NDArray[Any]
COLORS: list[tuple[Matrix, bool]] = [
    ("bt601", False),
    ("bt601", True),
    ("bt709", False),
    ("bt709", True),
]
SWS_MATRIX = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}
RANGE = {False: ColorRange.MPEG, True: ColorRange.JPEG}


def ramps(h: int, w: int) -> Array:
    """A smooth picture of many colours, [1, h, w, 3]: chroma siting hardly matters on it."""
    y, x = np.mgrid[0:h, 0:w]
    r, g = 255 * x / (w - 1), 255 * y / (h - 1)
    b = 127.5 + 127.5 * np.cos(0.02 * (x + y))
    return np.rint(np.stack([r, g, b], axis=-1))[None].astype(np.uint8)


def swscale(frame: av.VideoFrame, to: str, matrix: Matrix, full_range: bool) -> Array:
    made = frame.reformat(
        format=to,
        src_colorspace=SWS_MATRIX[matrix],
        dst_colorspace=SWS_MATRIX[matrix],
        src_color_range=RANGE[full_range or frame.format.name == "rgb24"],
        dst_color_range=RANGE[full_range or to == "rgb24"],
        interpolation="BILINEAR",
    )
    return np.asarray(made.to_ndarray())


def equations(matrix: Matrix, full_range: bool) -> tuple[Array, Array]:
    """RGB -> YUV as the standards write it, [3, 3] and offset [3], in float64."""
    red, blue = (0.2126, 0.0722) if matrix == "bt709" else (0.299, 0.114)
    luma = np.array([red, 1 - red - blue, blue])
    to_blue = (np.array([0, 0, 1]) - luma) / (1 - blue) / 2
    to_red = (np.array([1, 0, 0]) - luma) / (1 - red) / 2
    rows = np.stack([luma, to_blue, to_red])
    if full_range:
        return rows, np.array([0, 128, 128])
    return rows * np.array([[219], [224], [224]]) / 255, np.array([16, 128, 128])


@pytest.mark.parametrize(("matrix", "full_range"), COLORS)
def test_both_ways_are_the_standards_equations(matrix: Matrix, full_range: bool) -> None:
    rows, offset = equations(matrix, full_range)
    color = ColorMatrix.of(matrix, full_range=full_range)
    rgb = ramps(96, 128)
    yuv = rgb_to_nv12(rgb, color)
    exact = rgb.astype(np.float64) @ rows.T + offset
    means = exact[..., 1:].reshape(1, 48, 2, 64, 2, 2).mean(axis=(2, 4))
    assert np.abs(yuv[:, :96] - exact[..., 0]).max() < 0.501
    assert np.abs(yuv[:, 96:].reshape(1, 48, 64, 2) - means).max() < 0.501
    chroma = yuv[:, 96:].reshape(1, 48, 64, 2).repeat(2, axis=1).repeat(2, axis=2)
    given = np.concatenate([yuv[:, :96, :, None], chroma], axis=-1)
    exact = ((given - offset) @ np.linalg.inv(rows).T).clip(0, 255)
    assert np.abs(nv12_to_rgb(yuv, color) - exact).max() < 0.501


@pytest.mark.parametrize(("matrix", "full_range"), COLORS)
def test_swscale_is_near(matrix: Matrix, full_range: bool) -> None:
    """swscale interpolates chroma and its fixed-point numbers are up to three levels off."""
    color = ColorMatrix.of(matrix, full_range=full_range)
    rgb = ramps(480, 832)
    nv12 = rgb_to_nv12(rgb, color)
    there = swscale(av.VideoFrame.from_ndarray(rgb[0], format="rgb24"), "nv12", matrix, full_range)
    assert np.abs(nv12[0].astype(int) - there).max() <= 2
    back = swscale(av.VideoFrame.from_ndarray(nv12[0], format="nv12"), "rgb24", matrix, full_range)
    assert np.abs(nv12_to_rgb(nv12, color)[0].astype(int) - back).max() <= 5


@pytest.mark.parametrize(("matrix", "full_range"), COLORS)
def test_flat_colours_come_back(matrix: Matrix, full_range: bool) -> None:
    color = ColorMatrix.of(matrix, full_range=full_range)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    rgb = colours.repeat(2, axis=1).repeat(2, axis=2)
    back = nv12_to_rgb(rgb_to_nv12(rgb, color), color)
    assert np.abs(back.astype(int) - rgb).max() <= 2


def test_black_white_and_grey_are_what_the_standards_say() -> None:
    rgb = np.array([0, 128, 255], np.uint8).repeat(12).reshape(3, 2, 2, 3)
    for matrix, full_range in COLORS:
        nv12 = rgb_to_nv12(rgb, ColorMatrix.of(matrix, full_range=full_range))
        luma = [0, 128, 255] if full_range else [16, 126, 235]
        assert nv12[:, 0, 0].tolist() == luma
        assert (nv12[:, 2] == 128).all()
