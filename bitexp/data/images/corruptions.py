"""Corruptions of test images at five strengths, as in CIFAR-10-C (arXiv 1903.12261).

The constants are those of its `make_cifar_c.py`, for images of about 32 x 32. BiBench (arXiv 2301.11233)
tests binary networks on them. A new one is one function.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitexp.common.randomness import generator
from bitexp.common.registry import Registry
from bitexp.common.torchvision import import_torchvision

if TYPE_CHECKING:
    from PIL.Image import Image

STRENGTHS = (1, 2, 3, 4, 5)
FUNCTIONAL = "torchvision.transforms.v2.functional"

CORRUPTIONS: Registry[Callable[[Tensor, int, torch.Generator], Tensor]] = Registry("corruption")
"""By name: images `[B, C, H, W]` in 0 .. 1, a strength of `STRENGTHS` and random numbers -> images."""


def corrupted(images: Tensor, name: str, strength: int, seed: int = 0) -> Tensor:
    """Images `[B, C, H, W]` in 0 .. 1 with a corruption, in that range; always the same for a seed."""
    draws = generator(f"corruption/{name}", seed, strength)
    changed: Tensor = CORRUPTIONS.get(name)(images, strength, draws)
    return changed.clamp(0, 1)


@CORRUPTIONS.register("gaussian_noise")
def gaussian_noise(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Normal noise of the same deviation everywhere."""
    return images + torch.randn(images.shape, generator=draws) * (0.04, 0.06, 0.08, 0.09, 0.10)[strength - 1]


@CORRUPTIONS.register("shot_noise")
def shot_noise(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Poisson noise, as of few photons."""
    photons = (500, 250, 100, 75, 50)[strength - 1]
    return torch.poisson(images * photons, generator=draws) / photons


@CORRUPTIONS.register("impulse_noise")
def impulse_noise(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Some values become black or white, each as often."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[strength - 1]
    where = torch.rand(images.shape, generator=draws)
    return images.where(where >= share, (where < share / 2).float())


@CORRUPTIONS.register("gaussian_blur")
def gaussian_blur(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Blurred; the kernel ends at four deviations."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[strength - 1]
    functional = import_torchvision(FUNCTIONAL)
    size = 2 * int(4 * sigma + 0.5) + 1
    blurred: Tensor = functional.gaussian_blur(images, [size, size], [sigma, sigma])
    return blurred


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


@CORRUPTIONS.register("contrast")
def contrast(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Nearer to the mean of each channel."""
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * (0.75, 0.5, 0.4, 0.3, 0.15)[strength - 1] + means


@CORRUPTIONS.register("brightness")
def brightness(images: Tensor, strength: int, draws: torch.Generator) -> Tensor:
    """Of a higher value, with hue and saturation as they were."""
    value = images.amax(1, keepdim=True)
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[strength - 1]).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-9), brighter)
