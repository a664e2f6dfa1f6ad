"""Corruptions of images, against what they are defined by."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bitexp.data.images.corruptions import CORRUPTIONS, STRENGTHS, corrupted

IMAGES = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS.names())
def test_corruptions_grow_with_their_strength_and_are_the_same_again(name: str, channels: int) -> None:
    smooth = torch.nn.functional.interpolate(IMAGES[:, :channels, ::4, ::4], (28, 28), mode="bilinear")
    distances = []
    for strength in STRENGTHS:
        changed = corrupted(smooth, name, strength)
        assert changed.shape == smooth.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert torch.equal(changed, corrupted(smooth, name, strength))
        distances.append(float((changed - smooth).square().mean()))
    assert 0 < distances[0] < distances[-1]


def test_noise_has_the_published_deviations() -> None:
    grey = torch.full((1, 1, 200, 200), 0.5)
    assert float((corrupted(grey, "gaussian_noise", 3) - grey).std()) == pytest.approx(0.08, rel=0.02)
    assert float((corrupted(grey, "shot_noise", 5) - grey).std()) == pytest.approx(
        (0.5 / 50) ** 0.5, rel=0.02
    )
    impulses = corrupted(grey, "impulse_noise", 5)
    assert float((impulses != grey).float().mean()) == pytest.approx(0.07, rel=0.1)
    assert float((impulses == 0).sum() / (impulses == 1).sum()) == pytest.approx(1, rel=0.2)


def test_blur_is_that_of_scipy_inside_of_the_border() -> None:
    expected = gaussian_filter(IMAGES.numpy(), (0, 0, 0.8, 0.8), truncate=4)
    inside = (..., slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(corrupted(IMAGES, "gaussian_blur", 4)[inside], expected[inside], atol=1e-5)


def test_brightness_adds_to_the_value_of_a_colour_alone() -> None:
    red, green, blue = IMAGES[0, :, 5, 5].tolist()
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.1, 1))
    assert corrupted(IMAGES, "brightness", 2)[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-5)
    assert float(corrupted(torch.zeros(1, 3, 2, 2), "brightness", 2).mean()) == pytest.approx(0.1)


def test_contrast_keeps_the_mean_of_each_channel() -> None:
    changed = corrupted(IMAGES, "contrast", 5)
    torch.testing.assert_close(changed.mean((2, 3)), IMAGES.mean((2, 3)))
    torch.testing.assert_close(changed.std((2, 3)), 0.15 * IMAGES.std((2, 3)))
