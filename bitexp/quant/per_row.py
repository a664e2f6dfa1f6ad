"""Values that belong to rows of weights: a scale for each, and the gradient of one."""

from __future__ import annotations

from torch import Tensor


def spread(value: Tensor, weight: Tensor) -> Tensor:
    """A value `[]` or `[out]` in a shape that multiplies weights `[out, ...]`."""
    return value.reshape(-1, *[1] * (weight.dim() - 1)) if value.dim() else value


def summed(of_weights: Tensor, like: Tensor) -> Tensor:
    """The sum of `[out, ...]` over the weights that a value like `like`, `[]` or `[out]`, belongs to."""
    return of_weights.flatten(1).sum(-1) if like.dim() else of_weights.sum()
