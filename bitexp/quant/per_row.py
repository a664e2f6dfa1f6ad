"""Values that belong to rows of weights: a scale for each, the mean of some of each, the gradient of one."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.sums import row_sums


def mean_where(rows: Tensor, chosen: Tensor) -> Tensor:
    """The mean of what is chosen of each row, `[..., n] -> [..., 1]`; 0 where that is nothing."""
    return row_sums(rows * chosen) / chosen.sum(-1, keepdim=True).clamp(min=1)


def spread(value: Tensor, weight: Tensor) -> Tensor:
    """A value `[]` or `[out]` in a shape that multiplies weights `[out, ...]`."""
    return value.reshape(-1, *[1] * (weight.dim() - 1)) if value.dim() else value


def summed(of_weights: Tensor, like: Tensor) -> Tensor:
    """The sum of `[out, ...]` over the weights that a value like `like`, `[]` or `[out]`, belongs to."""
    rows = of_weights.flatten(1) if like.dim() else of_weights.reshape(1, -1)
    return row_sums(rows).reshape(like.shape)
