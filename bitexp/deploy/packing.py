"""Codes in bytes, and back. Codes lie consecutively along a row's inputs, as digits `(code - low) / stride`.

    pack1   8 digits of 2 in a byte      the first in the lowest bit
    pack5   5 digits of 3 in a byte      base 3, the first is the least significant
    pack2   4 digits of 4 in a byte      the first in the lowest bits
    pack3   8 digits of 8 in 3 bytes     a number of 24 bits, the first digit and the first byte the lowest
    pack4   2 digits of 16 in a byte     the first in the lowest bits
    pack8in5, pack4in3, pack8in7         8 digits of 32 in 5 bytes, 4 of 64 in 3, 8 of 128 in 7, as in pack3
    pack8   1 digit of 256 in a byte

`low` and `stride` are those of the levels. Where levels come in words, a digit is the place of a word in
their list, and stands for its codes; the last word of a row may be cut short. The planes of a weight are
consecutive codes. A row is padded to whole bytes with digits 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitexp.common.spelling import nearest
from bitexp.quant.levels import Levels, Words

PIECE = 2**18
"""Codes that are packed or unpacked together at most, but for a longer row."""


@dataclass(frozen=True)
class Layout:
    """`digits` of the given base in `bytes` bytes; digit d is the code `low + stride * d`, or word d.

    `count` is how many digits are used, where not all of them are; `words` and `planes` are those of levels.
    """

    base: int
    digits: int
    bytes: int = 1
    low: int = 0
    stride: int = 1
    count: int | None = None
    words: Words | None = None
    planes: int = 1

    @property
    def used(self) -> int:
        """How many digits stand for a code."""
        return self.base if self.count is None else self.count

    @property
    def length(self) -> int:
        """Codes that a digit stands for."""
        return 1 if self.words is None else len(self.words[0])

    @property
    def bits(self) -> float:
        """Bits that a weight takes."""
        return 8 * self.bytes / self.digits * self.planes / self.length

    def row_bytes(self, inputs: int) -> int:
        """Bytes of a row of so many weights."""
        return -(-self.row_digits(inputs) // self.digits) * self.bytes

    def row_digits(self, inputs: int) -> int:
        """Digits of a row of so many weights."""
        return -(-inputs * self.planes // self.length)

    def packed_shape(self, rows: int, inputs: int) -> tuple[int, int]:
        """The shape of packed codes `[rows, inputs]`."""
        return rows, self.row_bytes(inputs)

    def pack(self, codes: Tensor) -> Tensor:
        """int8 codes `[rows, K]`, or `[planes, rows, K]`, -> uint8 `[rows, bytes]`.

        Raises:
            ValueError: codes that are none of this layout.
        """
        pieces = codes.split(rows_at_once(codes.shape[-1]), -2)
        return torch.cat([self._pack(piece) for piece in pieces])

    def _pack(self, codes: Tensor) -> Tensor:
        codes = self.in_order(codes)
        digits = self._word_digits(codes, self.words) if self.words else self._code_digits(codes)
        digits = torch.nn.functional.pad(digits, (0, -digits.shape[1] % self.digits))
        numbers = (digits.unflatten(1, (-1, self.digits)) * self._powers(codes.device)).sum(-1)
        shifts = torch.arange(0, 8 * self.bytes, 8, device=codes.device)
        return (numbers[..., None] >> shifts & 255).to(torch.uint8).flatten(1)

    def unpack(self, packed: Tensor, inputs: int) -> Tensor:
        """uint8 `[rows, bytes]` -> int8 `[rows, inputs]`, or `[planes, rows, inputs]`.

        Raises:
            ValueError: bytes that no codes make.
        """
        if packed.shape != self.packed_shape(len(packed), inputs):
            raise ValueError(f"{packed.shape[1]} bytes per row cannot hold {inputs} codes in this layout")
        pieces = packed.split(rows_at_once(inputs * self.planes))
        # integer products of what does not lie together take hundreds of times as long
        return torch.cat([self._unpack(piece, inputs) for piece in pieces], -2).contiguous()

    def _unpack(self, packed: Tensor, inputs: int) -> Tensor:
        digits = self.digits_of(packed)
        if packed.numel() and int(digits.max()) >= self.used:
            raise ValueError("packed weights hold bytes that this layout never writes: the file is damaged")
        digits, beyond = digits.tensor_split([self.row_digits(inputs)], 1)
        codes = self._in_order(digits, inputs)
        if self.words is not None:
            cut = codes[:, codes.shape[1] // self.length * self.length :]
            if cut.shape[1]:  # the word that it is written as
                beyond = torch.cat([beyond, digits[:, -1:] - place_of(cut, self.words)[:, None]], 1)
        if bool(beyond.any()):
            raise ValueError("packed weights hold codes beyond the end of a row: the file is damaged")
        return self._by_plane(codes)

    def unpack_unchecked(self, packed: Tensor, inputs: int, clamp: bool) -> Tensor:
        """The same of whatever bytes, as who does not check them reads them.

        Args:
            clamp: whether digits that stand for no code are read as the highest code, and not as the integer
                that they come to (in int8); of words they always are.
        """
        digits = self.digits_of(packed)[:, : self.row_digits(inputs)]
        if clamp or self.words is not None:
            digits = digits.clamp(max=self.used - 1)
        return self._by_plane(self._in_order(digits, inputs))

    def in_order(self, values: Tensor) -> Tensor:
        """`[rows, K]`, or `[planes, rows, K]`, as the codes lie: `[rows, K * planes]`."""
        return values if self.planes == 1 else values.movedim(0, -1).flatten(1)

    def _in_order(self, digits: Tensor, inputs: int) -> Tensor:
        if self.words is None:
            return (digits * self.stride + self.low).to(torch.int8)
        table = torch.tensor(self.words, dtype=torch.int8, device=digits.device)
        return table[digits.long()].flatten(1)[:, : inputs * self.planes]

    def _by_plane(self, codes: Tensor) -> Tensor:
        if self.planes == 1:
            return codes
        return codes.unflatten(1, (-1, self.planes)).movedim(-1, 0)

    def digits_of(self, packed: Tensor) -> Tensor:
        """uint8 `[rows, bytes]` -> `[rows, digits]`, those beyond the last code included.

        Bytes that no codes make give digits from `used` on.
        """
        shifts = torch.arange(0, 8 * self.bytes, 8, device=packed.device)
        lanes = packed.to(self._dtype).unflatten(1, (-1, self.bytes))
        numbers = (lanes << shifts).sum(-1, dtype=self._dtype)
        digits = numbers[..., None] // self._powers(packed.device)
        digits[..., :-1] %= self.base  # the last is beyond the base where the bytes are none of ours
        return digits.flatten(1)

    def _code_digits(self, codes: Tensor) -> Tensor:
        span = self.stride * (self.used - 1)
        above = codes.to(self._dtype) - self.low  # of more than 8 bits: the highest digit may be no int8
        if codes.numel() and bool(((above < 0) | (above > span) | (above % self.stride != 0)).any()):
            raise ValueError(
                f"codes {int(codes.min())}..{int(codes.max())} do not fit a layout for "
                f"{self.low}..{self.low + span}" + (f" in steps of {self.stride}" if self.stride > 1 else "")
            )
        return above // self.stride

    def _word_digits(self, codes: Tensor, words: Words) -> Tensor:
        whole = codes.shape[1] - codes.shape[1] % self.length
        parts = [codes[:, :whole].unflatten(1, (-1, self.length)), codes[:, None, whole:]]
        digits = torch.cat([place_of(part, words) for part in parts if part.shape[-1]], 1)
        if digits.numel() and int(digits.min()) < 0:
            raise ValueError(f"codes do not fit a layout for {len(words)} words of {self.length} codes")
        return digits.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.int32 if self.bytes < 4 else torch.int64

    def _powers(self, device: torch.device) -> Tensor:
        return torch.tensor([self.base**i for i in range(self.digits)], dtype=self._dtype, device=device)


def rows_at_once(codes: int) -> int:
    """Rows of so many codes that are worked on together: the numbers on the way take 16 times as much."""
    return max(1, PIECE // max(1, codes))


def place_of(codes: Tensor, words: Words) -> Tensor:
    """The place of codes `[..., n]` in a list of words: the first that begins with them, -1 for none."""
    low, high = (extreme(code for word in words for code in word) for extreme in (min, max))
    powers = torch.tensor([(high - low + 1) ** i for i in range(codes.shape[-1])], device=codes.device)
    starts = torch.tensor(words, device=codes.device)[:, : codes.shape[-1]]
    known, order = ((starts - low) * powers).sum(-1).sort(stable=True)
    keys = ((codes.long() - low) * powers).sum(-1)
    place = torch.searchsorted(known, keys).clamp(max=len(words) - 1)  # of equal ones the first
    fits = ((codes >= low) & (codes <= high)).all(-1) & (known[place] == keys)
    return torch.where(fits, order[place], -1)


LAYOUTS = {
    "pack1": Layout(base=2, digits=8),
    "pack5": Layout(base=3, digits=5),
    "pack2": Layout(base=4, digits=4),
    "pack3": Layout(base=8, digits=8, bytes=3),
    "pack4": Layout(base=16, digits=2),
    "pack8in5": Layout(base=32, digits=8, bytes=5),
    "pack4in3": Layout(base=64, digits=4, bytes=3),
    "pack8in7": Layout(base=128, digits=8, bytes=7),
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
    what = "codes" if levels.length == 1 else f"words of {levels.length} codes"
    raise ValueError(f"the {levels.count} {what} {levels.low}..{levels.high} do not fit the layout {name}")


def layout_of(name: str, levels: Levels) -> Layout:
    """A layout for codes of these levels. Raises `ValueError` where it has too few digits."""
    name = choose_layout(name, levels)
    return replace(
        LAYOUTS[name],
        low=levels.low,
        stride=levels.stride,
        count=levels.count,
        words=levels.words,
        planes=levels.planes,
    )
