"""What is done to files and screens."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitexp.common.torchvision import import_torchvision
from bitexp.data.images.corruptions.geometry import between, pixels, sampled, smoothed
from bitexp.data.images.corruptions.registry import CORRUPTIONS

if TYPE_CHECKING:
    from PIL.Image import Image

FUNCTIONAL = "torchvision.transforms.v2.functional"


@CORRUPTIONS.register("contrast")
def contrast(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Nearer to the mean of each channel."""
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * (0.75, 0.5, 0.4, 0.3, 0.15)[strength - 1] + means


@CORRUPTIONS.register("elastic")
def elastic(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Three points of an image go elsewhere and take all of it along, then every pixel is moved a little."""
    far, sigma, corner = (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[strength - 1]
    count, _, height, width = images.shape
    side, (columns, rows) = min(height, width), pixels(height, width)
    x, y, reach = width // 2, height // 2, side // 3
    points = torch.tensor([[x + reach, y + reach], [x + reach, y - reach], [x - reach, y - reach]]).float()
    places = points + between(-corner * side, corner * side, (count, 3, 2), draws)
    back = affine(places, points.expand(count, 3, 2))
    origins = torch.stack([columns, rows, torch.ones_like(rows)], -1) @ back[:, None]  # [B, H, W, 2]
    turned = sampled(images, origins[..., 0], origins[..., 1], "pixel")
    right, down = (
        smoothed(between(-1, 1, (count, height, width), draws), sigma * side, "reflect", 3.0) * far * side
        for _ in range(2)
    )
    return sampled(turned, columns + right, rows + down, "edge")


def affine(sources: Tensor, targets: Tensor) -> Tensor:
    """The maps `[B, 3, 2]` that take three points each, `[B, 3, 2]`, to others: `[x, y, 1] @ map`."""
    ones = torch.ones(*sources.shape[:2], 1)
    return torch.linalg.solve(torch.cat([sources, ones], -1).double(), targets.double()).float()


@CORRUPTIONS.register("pixelate")
def pixelate(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Coarser pixels."""
    from PIL.Image import Resampling

    share = (0.95, 0.9, 0.85, 0.75, 0.65)[strength - 1]

    def change(image: Image) -> Image:
        coarse = (max(1, int(image.width * share)), max(1, int(image.height * share)))
        return image.resize(coarse, Resampling.BOX).resize(image.size, Resampling.BOX)

    return by_pillow(images, change)


@CORRUPTIONS.register("jpeg")
def jpeg(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Compressed at a low quality; by Pillow, since not every build of torchvision can."""
    from PIL.Image import open as opened

    def change(image: Image) -> Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=(80, 65, 58, 50, 40)[strength - 1])
        return opened(file)

    return by_pillow(images, change)


def by_pillow(images: Tensor, change: Callable[[Image], Image]) -> Tensor:
    """Images changed as those of Pillow, in 8 bits."""
    functional = import_torchvision(FUNCTIONAL)
    changed = [functional.to_image(change(functional.to_pil_image(image))) for image in images]
    return torch.stack(changed).float() / 255
