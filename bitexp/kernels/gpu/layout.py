"""Packed weights as the GPU reads them: runs of 16 bytes, decoded by shifts and masks alone.

    2 bits   64 codes in 16 bytes   byte b holds k = b, b+16, b+32, b+48   digit = code + 1
    1 bit   128 codes in 16 bytes   byte b holds k = b, b+16, ..., b+112   digit = (code + 1) / 2

The first lies in the lowest bits.

One layout serves both uses. As 32-bit words, `(word >> shift) & mask` gives four neighbouring codes in
the four bytes, what `dp4a` multiplies; as bytes, a run unfolds into a matrix unit's operand without a
move between threads. Rows are padded to whole runs; activations are zero there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RUN = 16
"""Bytes in a run."""


class Packed(NamedTuple):
    """Codes `[N, K]` in runs: `data` uint8 `[N, padded / per_byte]`, scales `[]` or `[N]`."""

    data: Tensor
    scale: Tensor
    inputs: int
    bits: int

    @property
    def padded(self) -> int:
        """Inputs, with the padding."""
        return self.data.shape[1] * (8 // self.bits)

    @property
    def outputs(self) -> int:
        """Rows."""
        return self.data.shape[0]


def bits_for(codes: Tensor) -> int | None:
    """The bits per code in this layout: 1 for {-1, 1}, 2 for {-1, 0, 1, 2}, None for a wider range."""
    if codes.numel() == 0:
        return 2
    low, high = int(codes.min()), int(codes.max())
    if low < -1 or high > 2:
        return None
    return 1 if high < 2 and not bool((codes == 0).any()) else 2


def pack(codes: Tensor, scale: Tensor, bits: int) -> Packed:
    """int8 codes `[N, K]` and their scales -> packed rows."""
    per_byte = 8 // bits
    digits = (codes + 1) if bits == 2 else (codes > 0)
    # a digit for code 0; there is none in one bit, and none is needed: activations are zero there
    digits = F.pad(digits.to(torch.uint8), (0, -codes.shape[1] % (RUN * per_byte)), value=bits - 1)
    runs = digits.reshape(len(codes), -1, per_byte, RUN)
    data = torch.zeros_like(runs[:, :, 0])
    for digit in range(per_byte):
        data |= runs[:, :, digit] << (digit * bits)
    return Packed(data.flatten(1), scale.contiguous(), codes.shape[1], bits)


def unpack(packed: Packed) -> Tensor:
    """Back to int8 codes `[N, K]`."""
    per_byte = 8 // packed.bits
    shifts = torch.arange(per_byte, dtype=torch.uint8, device=packed.data.device) * packed.bits
    runs = packed.data.reshape(packed.outputs, -1, 1, RUN)
    digits = ((runs >> shifts[:, None]) & (2**packed.bits - 1)).to(torch.int8)
    codes = digits - 1 if packed.bits == 2 else 2 * digits - 1
    return codes.reshape(packed.outputs, packed.padded)[:, : packed.inputs]
