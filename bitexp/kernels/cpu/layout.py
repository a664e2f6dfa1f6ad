"""P64, the layout of packed codes in memory: 64 outputs are one stream that is read from front to end.

A stream is a row of blocks, a block 4 panels of 64 bytes, a panel 16 outputs. Byte `4 (n % 16) + k % 4` of a
panel holds for output n the codes of `8 / bits` groups of four inputs, the first group in the lowest bits. So
an instruction that sums four products per 32-bit lane has outputs as lanes, and no sum crosses lanes.

    codes -1, 1      1 bit   (code + 1) / 2   block of 32 inputs
    codes -1 .. 2    2 bits  code + 1         block of 16 inputs
    codes -8 .. 7    4 bits  code + 8         block of 8 inputs

Outputs are padded to whole streams and inputs to whole blocks; the activation codes there are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.spec import Norm

NORMS: dict[Norm, int] = {"none": 0, "rms": 1, "layer": 2}
"""The numbers of norms for compiled code."""
STREAM, PANEL, BLOCK_BYTES = 64, 16, 256
LOW = {1: -1, 2: -1, 4: -8}
"""The smallest code by bits: digit 0."""


def digits_of(codes: Tensor) -> tuple[int, Tensor] | None:
    """Bits per code and the codes as uint8 digits, for the fewest bits; None where 4 are too few."""
    if not codes.numel():
        return 2, codes.to(torch.uint8)
    low, high = int(codes.min()), int(codes.max())
    if low >= -1 and high <= 1 and not bool((codes == 0).any()):
        return 1, (codes > 0).to(torch.uint8)
    for bits in (2, 4):
        if low >= LOW[bits] and high < LOW[bits] + 2**bits:
            return bits, (codes - LOW[bits]).to(torch.uint8)
    return None


def pack(digits: Tensor, bits: int) -> Tensor:
    """uint8 digits `[outputs, inputs]` -> uint8 `[streams, blocks, 256]`."""
    groups = 8 // bits
    outputs, inputs = digits.shape
    digits = F.pad(digits, (0, -inputs % (4 * groups), 0, -outputs % STREAM))
    streams, blocks = digits.shape[0] // STREAM, digits.shape[1] // (4 * groups)
    parts = digits.reshape(streams, 4, PANEL, blocks, groups, 4)
    parts = parts.permute(4, 0, 3, 1, 2, 5).reshape(groups, streams, blocks, BLOCK_BYTES)
    packed = torch.zeros(streams, blocks, BLOCK_BYTES, dtype=torch.uint8)
    for g in range(groups):
        packed |= parts[g] << (bits * g)
    return packed


def unpack(packed: Tensor, bits: int, outputs: int, inputs: int) -> Tensor:
    """The int8 codes `[outputs, inputs]` again."""
    groups = 8 // bits
    streams, blocks, _ = packed.shape
    parts = torch.stack([(packed >> (bits * g)) & (2**bits - 1) for g in range(groups)])
    parts = parts.reshape(groups, streams, blocks, 4, PANEL, 4).permute(1, 3, 4, 2, 0, 5)
    digits = parts.reshape(streams * STREAM, blocks * 4 * groups)[:outputs, :inputs].to(torch.int8)
    return (2 * digits if bits == 1 else digits) + LOW[bits]
