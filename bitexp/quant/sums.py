"""Sums of floats in an order that is defined: the same bits on every kernel, in any number of threads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 64
"""Numbers that are added side by side in a sum over features."""

BLOCK = 4096
"""Weights of a row that torch sums at once; it shares a longer row out to as many threads as it has."""


def ordered_sum(dim: int, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The sum of x, or of x times y, over `dim`, -1 or -3, of size 1 there.

    The numbers are cut into pieces of 64, the last filled up with -0.0, which adds nothing. The pieces are
    added one after the other, then the first half of what came of it and the second, down to one number.
    """
    count = x.shape[dim]
    lanes = min(LANES, 1 << (count - 1).bit_length())
    total: Tensor | None = None
    for start in range(0, count, lanes):
        size = min(lanes, count - start)
        piece = x.narrow(dim, start, size)
        if y is not None:
            piece = piece * y.narrow(dim, start, size)
        if size < lanes:
            piece = F.pad(piece, (*[0] * (-2 * dim - 2), 0, lanes - size), value=-0.0)
        total = piece if total is None else total + piece
    assert total is not None, "a sum of nothing"
    while lanes > 1:
        lanes //= 2
        total = total.narrow(dim, 0, lanes) + total.narrow(dim, lanes, lanes)
    return total


def row_sums(x: Tensor) -> Tensor:
    """`[..., n] -> [..., 1]`, where a row may be a whole tensor: blocks of 4096, then their sums."""
    while x.shape[-1] > BLOCK:
        whole = x.shape[-1] // BLOCK * BLOCK
        sums = x[..., :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
        x = sums if whole == x.shape[-1] else torch.cat([sums, x[..., whole:].sum(-1, keepdim=True)], -1)
    return x.sum(-1, keepdim=True)


def row_means(x: Tensor) -> Tensor:
    """The means of rows, by `row_sums`."""
    return row_sums(x) / x.shape[-1]
