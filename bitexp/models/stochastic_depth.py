"""Stochastic depth: in training, samples go past residual branches at random (arXiv 1603.09382)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def check_rate(rate: float) -> None:
    """Raises `ValueError` unless a rate is at least 0 and below 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"stochastic_depth={rate} must be at least 0 and below 1")


def rising(rate: float, depth: int) -> Iterator[float]:
    """A rate for each of so many branches: from 0 for the first to `rate` for the last (section 4)."""
    return (rate * place / max(1, depth - 1) for place in range(depth))


def dropped(branch: Tensor, rate: float) -> Tensor:
    """A branch `[B, ...]` that is 0 for samples at that rate, and larger for others: the mean stays."""
    shape = (len(branch), *[1] * (branch.dim() - 1))
    kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - rate)
    return branch * kept.div_(1 - rate)


def drop_branches(branches: list[nn.Module], rate: float) -> None:
    """Has the outputs of modules, which end residual branches, be dropped in training, at rising rates."""

    def hook(of: float) -> Any:
        def drop(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return dropped(output, of) if module.training and of else output

        return drop

    for branch, own in zip(branches, rising(rate, len(branches)), strict=True):
        branch.register_forward_hook(hook(own))
