"""What a corruption is, and the one way to apply it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitexp.common.randomness import generator
from bitexp.common.registry import Registry

STRENGTHS = (1, 2, 3, 4, 5)

CORRUPTIONS: Registry[Callable[[Tensor, int, torch.Generator], Tensor]] = Registry("corruption")
"""By name: images `[B, C, H, W]` in 0 .. 1, a strength of `STRENGTHS` and random numbers -> images."""


def corrupted(images: Tensor, name: str, strength: int, seed: int = 0) -> Tensor:
    """Images `[B, C, H, W]` in 0 .. 1 with a corruption, in that range; always the same for a seed."""
    draws = generator(f"corruption/{name}", seed, strength)
    changed: Tensor = CORRUPTIONS.get(name)(images, strength, draws)
    return changed.clamp(0, 1)
