"""Sums of floats in an order that is defined: the same bits on every kernel, in any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.modes import in_memory, readable

LANES = 64
"""Numbers that are added side by side in a sum over features."""

BLOCK = 4096
"""Weights of a row that torch sums at once; it shares a longer row out to as many threads as it has."""


FEW, LONG = 2**13, 1024
"""Numbers up to which numpy, whose calls are shorter, is faster than torch; in rows from 1024 on, which are
many pieces, 8 times as many."""


def ordered_sum(dim: int, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The sum of x, or of x times y, over `dim`, -1 or -3, of size 1 there.

    The numbers are cut into pieces of 64, the last filled up with -0.0, which adds nothing. The pieces are
    added one after the other, then the first half of what came of it and the second, down to one number.
    """
    if y is not None:
        x = x * y
    count = int(x.shape[dim])  # which torch.jit.trace gives as a tensor
    if few(dim, x):
        return torch.from_numpy(few_sums(copied_rows(x)[1])).reshape(*x.shape[:-1], 1)
    if count <= LANES:
        lanes = 1 << (count - 1).bit_length()
        total = x if lanes == count else F.pad(x, (*[0] * (-2 * dim - 2), 0, lanes - count), value=-0.0)
    else:
        lanes, pieces = LANES, count // LANES
        first, *others = x.narrow(dim, 0, pieces * LANES).chunk(pieces, dim)
        total = first.clone()
        for piece in others:
            total.add_(piece)
        if rest := count % LANES:
            total.narrow(dim, 0, rest).add_(x.narrow(dim, count - rest, rest))
    while lanes > 1:
        lanes //= 2
        low, high = total.chunk(2, dim)  # not split, which is Python, and as slow as all the rest
        total = low + high
    return total


def few(dim: int, x: Tensor) -> bool:
    """Whether numpy may read x, and sums it faster than torch."""
    count = x.numel()  # a symbol where a program for all sizes is recorded, and that must not be asked
    most = FEW if x.shape[dim] < LONG else 8 * FEW
    fits = dim == -1 and x.dtype is torch.float32 and type(count) is int and 0 < count <= most and x.is_cpu
    return fits and readable(x) and in_memory(x)


def copied_rows(x: Tensor) -> tuple[Tensor, Any]:
    """A copy of x, and its memory as an array `[rows, features]`; that of x itself is not ours to hold."""
    copy = x.clone(memory_format=torch.contiguous_format)
    return copy, copy.numpy().reshape(-1, x.shape[-1])


@np.errstate(all="ignore")  # as torch, which says nothing where a sum is not finite
def few_sums(rows: Any) -> Any:
    """`ordered_sum` of rows that it writes into, by numpy: along any axis but the last it adds in order."""
    count = rows.shape[1]
    if count <= LANES:
        lanes, total = 1 << (count - 1).bit_length(), rows
    else:
        lanes, whole = LANES, count // LANES * LANES
        total = np.add.reduce(rows[:, :whole].reshape(len(rows), -1, LANES), 1)
        total[:, : count - whole] += rows[:, whole:]
    while lanes > 1:
        lanes //= 2
        low, high = total[:, :lanes], total[:, lanes:]
        if high.shape[1] == lanes:
            total = low + high
        else:
            total = low
            total[:, : high.shape[1]] += high
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


def ordered_means(rows: Tensor) -> Tensor:
    """The means of rows `[rows, n] -> [rows, 1]`: of blocks of 4096, then of their sums, by `ordered_sum`.

    On a GPU torch adds in its own order.
    """
    if not rows.is_cpu:
        return row_means(rows)
    count = rows.shape[-1]
    while rows.shape[-1] > BLOCK:
        whole = rows.shape[-1] // BLOCK * BLOCK
        sums = ordered_sum(-1, rows[..., :whole].unflatten(-1, (-1, BLOCK)))[..., 0]
        rows = sums if whole == rows.shape[-1] else torch.cat([sums, ordered_sum(-1, rows[..., whole:])], -1)
    return ordered_sum(-1, rows) / count


def token_means(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The means over `dims`, the last ones, which stay with size 1, by `row_sums`."""
    return row_means(x.flatten(-len(dims))).unflatten(-1, (1,) * len(dims))
