"""How much of what a layer says other layers say as well: OMPQ's orthogonality (arXiv 2109.07865)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def orthogonality(outputs: Sequence[Tensor]) -> Tensor:
    """ORM of each pair of layers, `[layers, layers]` in [0, 1]; 1 where both say the same.

    `|F_j^T F_i|^2 / (|F_i^T F_i| |F_j^T F_j|)` of outputs `F` that are centred over the samples, as in the
    authors' code: linear CKA (arXiv 1905.00414, eq. 3), by Gram matrices of N x N.

    Args:
        outputs: of each layer, `[N, ...]` for the same N samples.
    """
    grams = [gram(output) for output in outputs]
    units = torch.stack([g.flatten() / g.norm().clamp(min=1e-300) for g in grams])
    return units @ units.T


def gram(output: Tensor) -> Tensor:
    """`F F^T` of centred outputs, `[N, N]` in fp64."""
    features = output.flatten(1).double()
    features = features - features.mean(0)
    return features @ features.T


def importance(matrix: Tensor, beta: float) -> Tensor:
    """What a bit more is worth in each layer, `[layers]`: the mean of `exp(-beta gamma)` from it to the last.

    gamma is the sum of a layer's ORM with all others (eq. 7 to 9). The mean over later layers is that of the
    objective, since what a layer loses goes through all that follow.
    """
    gamma = matrix.sum(1) - matrix.diagonal()
    theta = torch.exp(-beta * gamma)
    later = theta.flip(0).cumsum(0).flip(0)
    return later / torch.arange(len(theta), 0, -1, dtype=theta.dtype)
