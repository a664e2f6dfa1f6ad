"""The integers that codes may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

Words = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Levels:
    """`low, low + stride, ..., high`. Bits, packed layout and the bound of exact sums follow from it.

    Args:
        words: where not every level may follow every other, what as many consecutive codes may be.
        planes: codes of a weight, each with a scale of its own; they are consecutive.

    Raises:
        ValueError: `high` is not a whole number of strides above `low`, or words are none of these levels.
    """

    low: int
    high: int
    stride: int = 1
    words: Words | None = None
    planes: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or self.high <= self.low or (self.high - self.low) % self.stride:
            raise ValueError(f"low={self.low}, high={self.high}, stride={self.stride} are no levels")
        if self.words is not None:
            known = range(self.low, self.high + 1, self.stride)
            one_length = len({len(word) for word in self.words}) == 1 and len(self.words[0]) > 0
            if not one_length or len(set(self.words)) < len(self.words):
                raise ValueError(f"words of {self.low}..{self.high} must differ and be of one length")
            if not all(code in known for word in self.words for code in word):
                raise ValueError(f"words must be made of the codes {self.low}..{self.high}")
            if (self.high - self.low + 1) ** self.length >= 2**63:
                raise ValueError(
                    f"words of {self.length} codes {self.low}..{self.high} are too long to tell apart"
                )

    @property
    def count(self) -> int:
        """How many there are, or how many words."""
        return (self.high - self.low) // self.stride + 1 if self.words is None else len(self.words)

    @property
    def length(self) -> int:
        """Codes in a word."""
        return 1 if self.words is None else len(self.words[0])

    @property
    def bits(self) -> float:
        """Bits of information in a weight."""
        return math.log2(self.count) / self.length * self.planes

    @property
    def largest(self) -> int:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest of them to each value, in its dtype."""
        steps = ((values - self.low) / self.stride).round().clamp(0, self.count - 1)
        return steps * self.stride + self.low

    def to_json(self) -> dict[str, Any]:
        """As JSON values; what most levels have not is left out."""
        fields = asdict(self)
        if self.words is None:
            del fields["words"]
        if self.planes == 1:
            del fields["planes"]
        return fields

    @staticmethod
    def signed(bits: int) -> Levels:
        """Two's complement: `-2^(bits-1) .. 2^(bits-1) - 1`."""
        return Levels(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @staticmethod
    def symmetric(bits: int) -> Levels:
        """The same without its lowest, so that each level has its negative."""
        return Levels(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)

    @staticmethod
    def odd(bits: int) -> Levels:
        """Odd integers, as many below zero as above: -3, -1, 1, 3."""
        return Levels(1 - 2**bits, 2**bits - 1, 2)

    @staticmethod
    def of_words(words: Iterable[Iterable[int]], planes: int = 1) -> Levels:
        """Those of a list of words."""
        listed = tuple(tuple(word) for word in words)
        codes = [code for word in listed for code in word]
        return Levels(min(codes, default=0), max(codes, default=0), words=listed, planes=planes)


BINARY = Levels(-1, 1, 2)
TERNARY = Levels(-1, 1)
