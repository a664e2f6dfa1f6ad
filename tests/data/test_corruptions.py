"""Corruptions of images, against what they are defined by."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import convolve2d

from bitexp.data.images.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from bitexp.data.images.corruptions.digital import affine
from bitexp.data.images.corruptions.geometry import middle, moved, pixels, sampled, zoomed
from bitexp.data.images.corruptions.weather import plasma

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
    assert min(distances) > 0
    if name != "elastic":  # its constants trade one kind of motion for another
        assert distances[0] < distances[-1]


def test_noise_has_the_published_deviations() -> None:
    grey = torch.full((1, 1, 200, 200), 0.5)
    assert float((corrupted(grey, "gaussian_noise", 3) - grey).std()) == pytest.approx(0.08, rel=0.02)
    assert float((corrupted(grey, "shot_noise", 5) - grey).std()) == pytest.approx(
        (0.5 / 50) ** 0.5, rel=0.02
    )
    impulses = corrupted(grey, "impulse_noise", 5)
    assert float((impulses != grey).float().mean()) == pytest.approx(0.07, rel=0.1)
    assert float((impulses == 0).sum() / (impulses == 1).sum()) == pytest.approx(1, rel=0.2)


def test_gaussian_blur_is_that_of_scikit_image() -> None:
    expected = gaussian_filter(IMAGES.numpy(), (0, 0, 0.8, 0.8), mode="nearest", truncate=4)
    np.testing.assert_allclose(corrupted(IMAGES, "gaussian_blur", 4), expected, atol=1e-6)


@pytest.mark.parametrize(("strength", "radius", "sigma"), [(1, 0.3, 0.4), (4, 1, 0.2), (5, 1.5, 0.1)])
def test_a_point_out_of_focus_is_a_disk_with_a_soft_edge(strength: int, radius: float, sigma: float) -> None:
    """The disk of the published code: 17 x 17 pixels, under a Gaussian of 3 x 3."""
    x, y = np.meshgrid(np.arange(-8, 9), np.arange(-8, 9))
    disk = (x**2 + y**2 <= radius**2) / np.sum(x**2 + y**2 <= radius**2)
    row = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    expected = convolve2d(disk, np.outer(row, row) / row.sum() ** 2, mode="same")
    point = torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 1
    np.testing.assert_allclose(corrupted(point, "defocus_blur", strength)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 30, -45, -100])
def test_motion_is_a_weighted_mean_along_a_line(degrees: int) -> None:
    """As ImageMagick computes it, pixel by pixel."""
    images, (radius, sigma, height, width) = IMAGES[..., :11, :13], (6, 1.5, 11, 13)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    angle, expected = math.radians(degrees), torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            for i, weight in enumerate(weights):
                x = column + math.ceil(i * math.cos(angle) - 0.5)
                y = row + math.ceil(i * math.sin(angle) - 0.5)
                pixel = images[0, 0, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
                expected[row, column] += weight / sum(weights) * pixel
    directions = torch.tensor([float(degrees), 0.0])
    torch.testing.assert_close(moved(images, radius, sigma, directions)[0, 0], expected)


@pytest.mark.parametrize("factor", [1.0, 1.13, 2.25])
def test_zoom_is_linear_between_pixels_of_the_middle(factor: float) -> None:
    part = middle(IMAGES, [math.ceil(28 / factor)] * 2)[0, 0].numpy()
    size = round(part.shape[0] * factor)
    places = np.linspace(0, part.shape[0] - 1, size)
    larger = map_coordinates(part, np.meshgrid(places, places, indexing="ij"), order=1)
    top = (size - 28) // 2
    expected = larger[top : top + 28, top : top + 28]
    np.testing.assert_allclose(zoomed(IMAGES, factor)[0, 0], expected, atol=1e-5)


def test_zoom_blur_is_the_mean_over_the_published_zooms() -> None:
    zooms = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06]  # of numpy's range up to 1.06, which has seven
    expected = (IMAGES + sum(zoomed(IMAGES, zoom) for zoom in zooms)) / 8
    torch.testing.assert_close(corrupted(IMAGES, "zoom_blur", 1), expected)


def test_behind_glass_pixels_take_the_value_of_a_neighbour() -> None:
    numbers = torch.arange(64.0).reshape(1, 1, 8, 8) / 255  # the least blur changes none
    changed = (corrupted(numbers, "glass_blur", 1) * 255).round().long()[0, 0]
    # the published loop leaves the first two rows and columns, but for what others take from the second
    assert changed[:2].tolist() == numbers.mul(255).round().long()[0, 0, :2].tolist()
    shifts = {
        (row - value // 8, column - value % 8)
        for row in range(2, 8)
        for column in range(2, 8)
        for value in [int(changed[row, column])]
    }
    assert shifts == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("decay", [3, 1.75])
def test_each_point_of_a_fractal_is_near_the_mean_of_its_neighbours(decay: float) -> None:
    maps = plasma(40, 16, decay, torch.Generator().manual_seed(0)).double()
    wobble, step = 100.0, 16
    while step >= 2:
        half = step // 2

        def at(down: int, right: int, by: int = step) -> torch.Tensor:
            return maps.roll((-down, -right), (1, 2))[:, ::by, ::by]

        centres = (at(0, 0) + at(step, 0) + at(0, step) + at(step, step)) / 4
        edges = (at(0, 0) + at(0, step) + at(half, half) + at(-half, half)) / 4
        sides = (at(0, 0) + at(step, 0) + at(half, half) + at(half, -half)) / 4
        for points, mean in ((at(half, half), centres), (at(0, half), edges), (at(half, 0), sides)):
            away = (points - mean) / wobble**2
            assert float(away.abs().max()) <= 1 + 1e-4
            assert float(away.std()) == pytest.approx(3**-0.5, rel=0.25)
        wobble, step = wobble / decay, half


def test_fog_keeps_the_largest_value_at_its_thickest() -> None:
    foggy = corrupted(torch.full((3, 1, 32, 32), 0.5), "fog", 3)
    torch.testing.assert_close(foggy.amax((1, 2, 3)), torch.full((3,), 0.5))
    torch.testing.assert_close(foggy.amin((1, 2, 3)), torch.full((3,), 0.25 / 1.25))


def test_snow_is_sparse_the_same_upside_down_and_pales() -> None:
    dark = corrupted(torch.zeros(20, 3, 32, 32), "snow", 1) - 0.05 * 0.5  # a grey of one half is mixed in
    torch.testing.assert_close(dark, dark.flip(2, 3))
    # a normal number of deviation 0.2 is above 0.6 - 0.1 in 0.6 % of pixels, each seen twice
    flakes = 2 * 0.00621 * (0.1 + 0.2 * 2.8)
    assert float(dark.mean()) == pytest.approx(flakes, rel=0.25)


@pytest.mark.parametrize(("mirror", "theirs"), [("edge", "reflect"), ("pixel", "mirror")])
def test_images_are_sampled_as_by_scipy(mirror: str, theirs: str) -> None:
    columns, rows = pixels(28, 28)
    columns, rows = columns * 1.3 - 3.2, rows * 1.1 + 0.7
    found = sampled(IMAGES[:1], columns[None], rows[None], mirror)  # type: ignore[arg-type]
    expected = map_coordinates(IMAGES[0, 1].numpy(), np.stack([rows, columns]), order=1, mode=theirs)
    np.testing.assert_allclose(found[0, 1], expected, atol=1e-4)


def test_three_points_say_where_all_others_go() -> None:
    sources = torch.tensor([[[1.0, 2.0], [5.0, 1.0], [3.0, 7.0]]])
    targets = torch.tensor([[[2.0, 2.0], [6.0, 3.0], [1.0, 9.0]]])
    ones = torch.ones(1, 3, 1)
    torch.testing.assert_close(torch.cat([sources, ones], -1) @ affine(sources, targets), targets)
    shifted = affine(sources, sources + 2)
    torch.testing.assert_close(shifted[0], torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]))


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
