"""Noise: every pixel for itself."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.data.images.corruptions.registry import CORRUPTIONS


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
