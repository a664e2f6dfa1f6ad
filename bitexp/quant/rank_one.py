"""The best approximation of |W| by a column times a row: where OneBit's factors begin."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 50
"""Of the power iteration; |W| has one singular value far above the others."""


@torch.no_grad()
def rank_one(weight: Tensor) -> tuple[Tensor, Tensor]:
    """SVID (OneBit, arXiv 2402.11295, eq. 5): |W| ~ rows columns^T with the least squared error.

    The factors of the largest singular value of a matrix without negative entries have none either.

    Args:
        weight: `[out, in, ...]`; of a convolution the mean over the places of its kernel.

    Returns:
        rows `[out]` and columns `[in]` in fp32, the latter with mean 1.
    """
    table = weight.detach().float().abs()
    table = table.flatten(2).mean(-1) if table.dim() > 2 else table
    columns = torch.ones(table.shape[1], device=table.device)
    for _ in range(0 if weight.is_meta else ROUNDS):  # of a packed file only the shapes are wanted
        rows = table @ columns
        columns = rows @ table
        columns = columns / columns.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return table @ columns / columns.square().sum().clamp(min=torch.finfo(torch.float32).tiny), columns
