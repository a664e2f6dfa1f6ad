"""The integers that codes may be."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Levels:
    """`low, low + stride, ..., high`. Bits, packed layout and the bound of exact sums follow from it.

    Raises:
        ValueError: `high` is not a whole number of strides above `low`.
    """

    low: int
    high: int
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or self.high <= self.low or (self.high - self.low) % self.stride:
            raise ValueError(f"low={self.low}, high={self.high}, stride={self.stride} are no levels")

    @property
    def count(self) -> int:
        """How many there are."""
        return (self.high - self.low) // self.stride + 1

    @property
    def bits(self) -> float:
        """Bits of information in a code."""
        return math.log2(self.count)

    @property
    def largest(self) -> int:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @staticmethod
    def signed(bits: int) -> Levels:
        """Two's complement: `-2^(bits-1) .. 2^(bits-1) - 1`."""
        return Levels(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @staticmethod
    def symmetric(bits: int) -> Levels:
        """The same without its lowest, so that each level has its negative."""
        return Levels(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)


BINARY = Levels(-1, 1, 2)
TERNARY = Levels(-1, 1)
