"""Codes in bytes: one, two or 1.6 bits per weight, and back. Codes lie consecutively along a row's inputs.

    pack1  8 codes per byte  {-1, 1}          bit = (code + 1) / 2, first code in the lowest bit
    pack5  5 codes per byte  {-1, 0, 1}       base 3, first code is the least significant trit
    pack2  4 codes per byte  {-1, 0, 1, 2}    code + 1, first code in the lowest bits
    pack4  2 codes per byte  {-8 .. 7}        code + 8, first code in the lowest bits
    pack8  1 code per byte   {-128 .. 127}    code + 128

A row is padded to whole bytes with the code that its digit 0 stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitexp.common.spelling import nearest


@dataclass(frozen=True)
class Layout:
    """`per_byte` digits of the given base, each a code minus `low`; `only` where not all digits count."""

    base: int
    per_byte: int
    low: int
    high: int
    stride: int = 1

    def packed_shape(self, rows: int, inputs: int) -> tuple[int, int]:
        """The shape of packed codes `[rows, inputs]`."""
        return rows, -(-inputs // self.per_byte)

    def pack(self, codes: Tensor) -> Tensor:
        """int8 codes `[rows, K]` -> uint8 `[rows, ceil(K / per_byte)]`. Raises on codes out of range."""
        if codes.numel():
            low, high = int(codes.min()), int(codes.max())
            off_step = bool(((codes.to(torch.int16) - self.low) % self.stride).any())
            if low < self.low or high > self.high or off_step:
                raise ValueError(f"codes {low}..{high} do not fit a layout for {self.low}..{self.high}")
        digits = (codes.to(torch.int16) - self.low) // self.stride
        digits = torch.nn.functional.pad(digits, (0, -codes.shape[1] % self.per_byte))
        digits = digits.reshape(*self.packed_shape(*codes.shape), self.per_byte)
        return (digits * self._powers(codes.device)).sum(-1).to(torch.uint8)

    def unpack(self, packed: Tensor, inputs: int) -> Tensor:
        """uint8 `[rows, bytes]` -> int8 codes `[rows, inputs]`. Raises on bytes that no codes make."""
        if packed.shape != self.packed_shape(len(packed), inputs):
            raise ValueError(f"{packed.shape[1]} bytes per row cannot hold {inputs} codes in this layout")
        if packed.numel() and int(packed.max()) >= self.base**self.per_byte:
            raise ValueError("packed weights hold bytes that this layout never writes: the file is damaged")
        digits = packed.to(torch.int16)[..., None] // self._powers(packed.device) % self.base
        codes = digits.flatten(1)[:, :inputs] * self.stride + self.low
        return codes.to(torch.int8)

    def _powers(self, device: torch.device) -> Tensor:
        return torch.tensor([self.base**i for i in range(self.per_byte)], dtype=torch.int16, device=device)


LAYOUTS = {
    "pack1": Layout(base=2, per_byte=8, low=-1, high=1, stride=2),
    "pack5": Layout(base=3, per_byte=5, low=-1, high=1),
    "pack2": Layout(base=4, per_byte=4, low=-1, high=2),
    "pack4": Layout(base=16, per_byte=2, low=-8, high=7),
    "pack8": Layout(base=256, per_byte=1, low=-128, high=127),
}
"""By name, the densest first."""


def choose_layout(name: str, codes: Tensor) -> str:
    """`name` itself, or for `auto` the densest layout that holds these codes.

    Raises:
        ValueError: no such layout, or the codes do not fit it.
    """
    if name != "auto" and name not in LAYOUTS:
        raise ValueError(
            f"unknown layout '{name}'.{nearest(name, LAYOUTS)} Known: auto, {', '.join(LAYOUTS)}"
        )
    values = {int(v) for v in codes.unique()}
    for candidate in LAYOUTS if name == "auto" else [name]:
        layout = LAYOUTS[candidate]
        if values <= set(range(layout.low, layout.high + 1, layout.stride)):
            return candidate
    raise ValueError(f"the codes {sorted(values)} do not fit the layout {name}")
