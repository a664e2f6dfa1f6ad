"""Stratified splits: every class is held out in its own proportion."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.common.randomness import generator


def stratified(labels: Tensor, held: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits the indices of `labels` `[N]` into the rest and exactly `held` held out, both sorted.

    Each class gives its share rounded down; the largest remainders give one more.
    """
    classes, counts = labels.unique(return_counts=True)
    shares = counts * held
    quotas = shares // len(labels)
    # stable, so that equal remainders are served in the order of the classes on every machine
    rest = (shares % len(labels)).sort(descending=True, stable=True).indices
    quotas[rest[: held - int(quotas.sum())]] += 1
    mask = torch.zeros(len(labels), dtype=torch.bool)
    draw = generator("split", seed)
    for cls, quota in zip(classes.tolist(), quotas.tolist(), strict=True):
        members = (labels == cls).nonzero().flatten()
        mask[members[torch.randperm(len(members), generator=draw)[:quota]]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
