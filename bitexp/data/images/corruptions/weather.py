"""Weather, without frost, which needs its pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.data.images.corruptions.geometry import between, moved, zoomed
from bitexp.data.images.corruptions.registry import CORRUPTIONS

GREY = (0.299, 0.587, 0.114)
"""Of red, green and blue, in grey."""


@CORRUPTIONS.register("fog")
def fog(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """A bright fractal of clouds, with the largest value as it was."""
    much, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[strength - 1]
    height, width = images.shape[-2:]
    size = 1 << (max(height, width) - 1).bit_length()
    clouds = plasma(len(images), size, decay, draws)
    low, high = clouds.amin((1, 2), keepdim=True), clouds.amax((1, 2), keepdim=True)
    clouds = (clouds - low) / (high - low)
    largest = images.amax((1, 2, 3), keepdim=True)
    return (images + much * clouds[:, None, :height, :width]) * largest / (largest + much)


def plasma(count: int, size: int, decay: float, draws: torch.Generator) -> Tensor:
    """Maps of heights `[count, size, size]` by the diamond-square algorithm, on a torus.

    Every new point is the mean of its four neighbours and a uniform number of up to `wobble^2`, where wobble
    begins with 100 and is divided by `decay` from each scale to the next.
    """
    maps = torch.zeros(count, size, size)
    step, wobble = size, 100.0

    def near(total: Tensor) -> Tensor:
        return total / 4 + wobble * between(-wobble, wobble, tuple(total.shape), draws)

    while step >= 2:
        half = step // 2
        corners = maps[:, ::step, ::step]
        columns = corners + corners.roll(-1, 2)
        maps[:, half::step, half::step] = near(columns + columns.roll(-1, 1))
        centres = maps[:, half::step, half::step]
        maps[:, ::step, half::step] = near(columns + centres + centres.roll(1, 1))
        rows = corners + corners.roll(-1, 1)
        maps[:, half::step, ::step] = near(rows + centres + centres.roll(1, 2))
        step, wobble = half, wobble / decay
    return maps


@CORRUPTIONS.register("snow")
def snow(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Flakes that fall, on paler images."""
    mean, deviation, factor, threshold, radius, sigma, kept = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[strength - 1]
    count, channels, height, width = images.shape
    flakes = zoomed(mean + deviation * torch.randn((count, 1, height, width), generator=draws), factor)
    flakes = (flakes.where(flakes >= threshold, 0.0).clamp(0, 1) * 255).floor() / 255
    flakes = moved(flakes, radius, sigma, between(-135, -45, (count,), draws))
    shares = torch.tensor(GREY if channels == 3 else [1 / channels] * channels)
    grey = (images * shares[:, None, None]).sum(1, keepdim=True)
    paler = kept * images + (1 - kept) * torch.maximum(images, grey * 1.5 + 0.5)
    return paler + flakes + flakes.flip(2, 3)


@CORRUPTIONS.register("brightness")
def brightness(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Of a higher value, with hue and saturation as they were."""
    value = images.amax(1, keepdim=True)
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[strength - 1]).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-9), brighter)
