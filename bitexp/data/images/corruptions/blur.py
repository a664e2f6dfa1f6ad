"""Blur."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.data.images.corruptions.geometry import between, moved, smoothed, zoomed
from bitexp.data.images.corruptions.registry import CORRUPTIONS

DISK = 3
"""Pixels that the largest disk out of focus, with its soft edge, reaches to each side."""


@CORRUPTIONS.register("gaussian_blur")
def gaussian_blur(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Under a Gaussian: one of the four corruptions that CIFAR-10-C has beside its fifteen."""
    return smoothed(images, (0.4, 0.6, 0.7, 0.8, 1.0)[strength - 1])


@CORRUPTIONS.register("defocus_blur")
def defocus_blur(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Out of focus: every pixel is a disk with a soft edge."""
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[strength - 1]
    squares = torch.arange(-DISK, DISK + 1.0).square()
    disk = (squares[:, None] + squares <= radius**2).float()
    edge = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma**2))
    edge = edge / edge.sum()
    soft = F.conv2d(disk[None, None], torch.outer(edge, edge)[None, None], padding=1) / disk.sum()
    padded = F.pad(images, (DISK,) * 4, mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], soft).reshape(images.shape)


@CORRUPTIONS.register("glass_blur")
def glass_blur(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """As through frosted glass: blurred, pixels take the colour of a neighbour in turn, blurred again.

    The published code means to swap two pixels, and copies one over the other, since numpy hands out views.
    This does what it does, and its rounding down to 8 bits.
    """
    sigma, turns = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[strength - 1]
    shuffled = (smoothed(images, sigma) * 255 + 1e-3).floor()
    (count, _, height, width), each = images.shape, torch.arange(len(images))
    for _ in range(turns):
        for row in range(height - 1, 1, -1):
            for column in range(width - 1, 1, -1):
                right, down = torch.randint(-1, 1, (2, count), generator=draws)
                shuffled[:, :, row, column] = shuffled[each, :, row + down, column + right]
    return smoothed(shuffled / 255, sigma)


@CORRUPTIONS.register("motion_blur")
def motion_blur(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """As of a camera that moves to the side, up to 45 degrees from the horizontal."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[strength - 1]
    return moved(images, radius, sigma, between(-45, 45, (len(images),), draws))


@CORRUPTIONS.register("zoom_blur")
def zoom_blur(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """As of a camera that moves ahead: the mean of images that are zoomed more and more."""
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[strength - 1], 0.01)  # its length is that of numpy
    return sum((zoomed(images, float(factor)) for factor in factors), images) / (len(factors) + 1)
