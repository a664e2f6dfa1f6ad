"""Codes in bytes, and back. Codes lie consecutively along a row's inputs, as digits `(code - low) / stride`.

    pack1   8 digits of 2 in a byte      the first in the lowest bit
    pack5   5 digits of 3 in a byte      base 3, the first is the least significant
    pack2   4 digits of 4 in a byte      the first in the lowest bits
    pack3   8 digits of 8 in 3 bytes     a number of 24 bits, the first digit and the first byte the lowest
    pack4   2 digits of 16 in a byte     the first in the lowest bits
    pack8   1 digit of 256 in a byte

`low` and `stride` are those of the levels. A row is padded to whole bytes with digits 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitexp.common.spelling import nearest
from bitexp.quant.levels import Levels


@dataclass(frozen=True)
class Layout:
    """`digits` of the given base in `bytes` bytes; digit d is the code `low + stride * d`.

    `count` is how many digits are used, where not all of them are.
    """

    base: int
    digits: int
    bytes: int = 1
    low: int = 0
    stride: int = 1
    count: int | None = None

    @property
    def used(self) -> int:
        """How many digits stand for a code."""
        return self.base if self.count is None else self.count

    @property
    def bits(self) -> float:
        """Bits that a code takes."""
        return 8 * self.bytes / self.digits

    def row_bytes(self, inputs: int) -> int:
        """Bytes of a row of so many codes."""
        return -(-inputs // self.digits) * self.bytes

    def packed_shape(self, rows: int, inputs: int) -> tuple[int, int]:
        """The shape of packed codes `[rows, inputs]`."""
        return rows, self.row_bytes(inputs)

    def pack(self, codes: Tensor) -> Tensor:
        """int8 codes `[rows, K]` -> uint8 `[rows, bytes]`. Raises `ValueError` on codes out of range."""
        span = self.stride * (self.used - 1)
        above = codes.to(torch.int32) - self.low  # compared in int32: the highest digit may be no int8
        if codes.numel() and bool(((above < 0) | (above > span) | (above % self.stride != 0)).any()):
            raise ValueError(
                f"codes {int(codes.min())}..{int(codes.max())} do not fit a layout for "
                f"{self.low}..{self.low + span}" + (f" in steps of {self.stride}" if self.stride > 1 else "")
            )
        digits = torch.nn.functional.pad(above // self.stride, (0, -codes.shape[1] % self.digits))
        numbers = (digits.unflatten(1, (-1, self.digits)) * self._powers(codes.device)).sum(-1)
        shifts = torch.arange(0, 8 * self.bytes, 8, device=codes.device)
        return (numbers[..., None] >> shifts & 255).to(torch.uint8).flatten(1)

    def unpack(self, packed: Tensor, inputs: int) -> Tensor:
        """uint8 `[rows, bytes]` -> int8 `[rows, inputs]`. Raises `ValueError` on bytes that no codes make."""
        if packed.shape != self.packed_shape(len(packed), inputs):
            raise ValueError(f"{packed.shape[1]} bytes per row cannot hold {inputs} codes in this layout")
        shifts = torch.arange(0, 8 * self.bytes, 8, device=packed.device)
        numbers = (packed.to(torch.int32).unflatten(1, (-1, self.bytes)) << shifts).sum(-1, dtype=torch.int32)
        digits = numbers[..., None] // self._powers(packed.device)
        digits[..., :-1] %= self.base  # the last is beyond the base where the bytes are none of ours
        if packed.numel() and int(digits.max()) >= self.used:
            raise ValueError("packed weights hold bytes that this layout never writes: the file is damaged")
        digits = digits.flatten(1)
        if bool(digits[:, inputs:].any()):
            raise ValueError("packed weights hold codes beyond the end of a row: the file is damaged")
        return (digits[:, :inputs] * self.stride + self.low).to(torch.int8)

    def _powers(self, device: torch.device) -> Tensor:
        return torch.tensor([self.base**i for i in range(self.digits)], dtype=torch.int32, device=device)


LAYOUTS = {
    "pack1": Layout(base=2, digits=8),
    "pack5": Layout(base=3, digits=5),
    "pack2": Layout(base=4, digits=4),
    "pack3": Layout(base=8, digits=8, bytes=3),
    "pack4": Layout(base=16, digits=2),
    "pack8": Layout(base=256, digits=1),
}
"""By name, the densest first."""

FORMAT_1 = {"pack1": (-1, 2), "pack5": (-1, 1), "pack2": (-1, 1), "pack4": (-8, 1), "pack8": (-128, 1)}
"""Low and stride of the layouts in files of format 1, which did not say them."""


def choose_layout(name: str, levels: Levels) -> str:
    """`name` itself, or for `auto` the densest layout that holds codes of these levels.

    Raises:
        ValueError: no such layout, or it has too few digits.
    """
    if name != "auto" and name not in LAYOUTS:
        raise ValueError(
            f"unknown layout '{name}'.{nearest(name, LAYOUTS)} Known: auto, {', '.join(LAYOUTS)}"
        )
    for candidate in LAYOUTS if name == "auto" else [name]:
        if LAYOUTS[candidate].base >= levels.count:
            return candidate
    raise ValueError(f"the {levels.count} codes {levels.low}..{levels.high} do not fit the layout {name}")


def layout_of(name: str, levels: Levels) -> Layout:
    """A layout for codes of these levels. Raises `ValueError` where it has too few digits."""
    name = choose_layout(name, levels)
    return replace(LAYOUTS[name], low=levels.low, stride=levels.stride, count=levels.count)
