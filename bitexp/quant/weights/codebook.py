"""Levels from a list, such as those of NF4 and of small floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.spec import Granularity

FLOATS = {"fp3": (0.0, 1.0, 2.0, 4.0), "fp4": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)}
"""The magnitudes of small floats: of 3 bits, and of 4 with two bits of exponent (E2M1)."""
TABLES = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ),
    **{name: (*(-v for v in reversed(values[1:])), *values) for name, values in FLOATS.items()},
}  # fmt: skip
"""By name: 4-bit NormalFloat (arXiv 2305.14314, appendix E), and floats with a sign."""


@WEIGHTS.register("codebook")
class Codebook(WeightQuantizer):
    """The nearest value of a list, in units of max|W| / the largest in the list (arXiv 2212.09720).

    Codes are integers, so that sums are exact: the list in the smallest units in which all of it is whole, up
    to 127 for the largest; else the nearest integers with 127 for the largest.

    Args:
        values: `nf4`, `fp4`, `fp3`, or a list of numbers.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        values: Literal["nf4", "fp4", "fp3"] | list[float] = "nf4",
        granularity: Granularity = "channel",
        group_size: int | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity, group_size=group_size)
        if isinstance(values, str) and values not in TABLES:
            raise ValueError(f"values={values} should be one of {', '.join(TABLES)}, or a list of numbers")
        table = TABLES[values] if isinstance(values, str) else values
        self.levels = Levels.of_words([code] for code in integers(table))

    def scale(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(-1, keepdim=True) / self.levels.largest

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        codes = torch.tensor([word[0] for word in self.levels.words or ()], device=rows.device)
        between = (codes[1:] + codes[:-1]) / 2
        return codes[torch.bucketize(rows / scale, between)]


def integers(values: Sequence[float]) -> list[int]:
    """Numbers as integers up to 127, in ascending order.

    Raises:
        ValueError: fewer than two differ.
    """
    largest = max((abs(v) for v in values), default=0.0)
    if largest == 0:
        raise ValueError(f"values={list(values)} need a number other than zero")
    for high in range(1, 128):
        scaled = [v / largest * high for v in values]
        if all(abs(s - round(s)) < 1e-6 for s in scaled):
            break
    found = sorted({round(s) for s in scaled})
    if len(found) < 2:
        raise ValueError(f"values={list(values)} need two numbers that differ")
    return found
