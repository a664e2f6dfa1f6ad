"""Uniform levels that are best for a normal distribution: QuEST's, for weights and for activations."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.spec import EPS
from bitexp.quant.sums import row_means

CLIPS = {
    1: 0.7978845587140913,
    2: 1.4935346200015913,
    3: 2.051068354131873,
    4: 2.513930578568423,
    5: 2.9160938834961225,
    6: 3.276597282593217,
    7: 3.6010497188221655,
}
"""By bits: the highest level, in root mean squares, with the least squared error (QuEST's own code)."""


def levels_of(bits: int) -> Levels:
    """2^bits levels around zero, which is none: the odd integers. Raises `ValueError` for other bits.

    8 bits would be codes up to 255.
    """
    if not 1 <= bits <= 7:
        raise ValueError(f"bits={bits} must be from 1 to 7: codes are odd int8, whose highest is 127")
    return Levels.odd(bits)


def gaussian_scale(x: Tensor, bits: int, dims: tuple[int, ...]) -> Tensor:
    """What a code of 1 stands for: half the distance of two levels. `dims`, the last, share one."""
    highest = torch.full((), float(2**bits - 1), dtype=x.dtype, device=x.device)
    means = row_means(x.square().flatten(-len(dims))).unflatten(-1, [1] * len(dims))
    return (means.sqrt() * CLIPS[bits] / highest).clamp(min=EPS)


def odd_codes(x: Tensor, scale: Tensor, levels: Levels) -> Tensor:
    """The nearest odd integer to `x / scale`, clamped to the levels, as int8."""
    ratio = (x * scale.reciprocal()).clamp(levels.low, levels.high)
    return (2 * ((ratio + 1) / 2).round() - 1).clamp(levels.low, levels.high).to(torch.int8)
