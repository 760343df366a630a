"""Fit policies: geometry there and back, and the resampler against an independent one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow

from liveedit.errors import UsageError
from liveedit.runtime.fit import FIT_POLICIES, Fit, FitPolicy, Size
from liveedit.runtime.resample import Resampler


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth_image(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 0 * x + 128], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("source", "target", "filter", "most"),
    [((480, 640), (128, 224), "bilinear", 0.3), ((97, 131), (320, 415), "bilinear", 0.3)],
)
def test_resampler_equals_pillow_within_rounding(source, target, filter, most):
    image = random_image(*source)
    expected = np.asarray(Pillow.fromarray(image).resize(target[::-1], Pillow.Resampling.BILINEAR))
    difference = Resampler(*target, filter)(image).astype(int) - expected
    assert np.abs(difference).mean() < most
    assert np.abs(difference).max() <= 16


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (97, 131), (128, 224)])
@pytest.mark.parametrize("policy", FIT_POLICIES)
def test_shapes_and_flat_colour_survive_any_size(size, policy):
    fit = Fit(Size(*size), Size(32, 64), policy)
    image = np.full((*size, 3), (10, 200, 60), np.uint8)
    shown = fit.to_model(image)
    assert shown.shape == (32, 64, 3)
    assert np.abs(shown.astype(int) - (10, 200, 60)).max() <= 1
    back = fit.to_source(shown, image)
    assert back.shape == image.shape
    assert np.abs(back.astype(int) - image).max() <= 2


@pytest.mark.parametrize("policy", FIT_POLICIES)
@pytest.mark.parametrize("size", [(90, 120), (120, 90), (61, 127)])
def test_unedited_frames_come_back_in_place(policy: FitPolicy, size):
    """A smooth picture through the model's size and back is the same picture, not a shifted one."""
    image = smooth_image(*size)
    fit = Fit(Size(*size), Size(64, 112), policy)
    back = fit.to_source(fit.to_model(image), image)
    assert np.abs(back.astype(int) - image)[4:-4, 4:-4].max() <= 4


def test_crop_leaves_the_rest_untouched():
    image = random_image(80, 40)
    fit = Fit(Size(80, 40), Size(32, 64), "crop")
    assert fit.source_rect == (30, 0, 20, 40)
    black = np.zeros((32, 64, 3), np.uint8)
    back = fit.to_source(black, image)
    assert np.array_equal(back[:30], image[:30])
    assert np.array_equal(back[50:], image[50:])
    assert not back[30:50].any()
    mask = fit.mask_to_source(np.full((4, 8), 255, np.uint8))
    assert not mask[:30].any()
    assert (mask[30:50] == 255).all()


def test_pad_repeats_the_border_and_is_cut_off_again():
    image = random_image(64, 32)
    fit = Fit(Size(64, 32), Size(32, 64), "pad")
    assert fit.model_rect == (0, 24, 32, 16)
    shown = fit.to_model(image)
    assert (shown[:, :24] == shown[:, 24:25]).all()
    assert (shown[:, 40:] == shown[:, 39:40]).all()
    shown[:, :24] = 0
    shown[:, 40:] = 0
    assert fit.to_source(shown)[:, 0].any()


def test_stretch_ignores_the_aspect_ratio():
    fit = Fit(Size(64, 32), Size(32, 64))
    assert fit.source_rect == (0, 0, 64, 32)
    assert fit.model_rect == (0, 0, 32, 64)


def test_unknown_policy_names_the_known_ones():
    with pytest.raises(UsageError, match=r"'zoom'.*stretch, crop, pad"):
        Fit(Size(4, 4), Size(16, 16), "zoom")  # type: ignore[arg-type]
