"""Codes as llama.cpp lays them out, block by block along a row; byte for byte what the package `gguf` writes.

| type | codes in a block | bytes | |
|---|---|---|---|
| TQ2_0 | 256 | 66 | byte 32 j + m: codes 128 j + 32 l + m in bits 2 l, as code + 1; then the scale |
| TQ1_0 | 256 | 54 | five (last: four) codes a byte in base 3, stored as ceil(256 n / 243); then the scale |
| Q1_0 | 128 | 18 | the scale; then bits, the lowest first: 1 is +scale, 0 is -scale |

Scales are fp16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Codes of TQ1_0 and TQ2_0 with a scale."""
BINARY_BLOCK = 128
"""Those of Q1_0."""

Codes = NDArray[np.int8]
Scales = NDArray[np.float16]
Bytes = NDArray[np.uint8]


def tq2_0(codes: Codes, scales: Scales) -> Bytes:
    """Codes -1..1 `[rows, K]` and scales `[rows, K / 256]` -> bytes `[rows, K / 256 * 66]`."""
    digits = (codes + 1).astype(np.uint8).reshape(*scales.shape, 2, 4, 32)
    lanes = digits << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    packed = np.bitwise_or.reduce(lanes, axis=-2).reshape(*scales.shape, 64)
    return joined(packed, bytes_of(scales))


def tq1_0(codes: Codes, scales: Scales) -> Bytes:
    """The same in 54 bytes a block."""
    digits = (codes + 1).astype(np.uint16).reshape(*scales.shape, BLOCK)
    parts = []
    for begin, end, count in ((0, 160, 5), (160, 240, 5), (240, 256, 4)):
        lanes = digits[..., begin:end].reshape(*scales.shape, count, -1)
        weights = np.array([81, 27, 9, 3, 1][:count], np.uint16)[:, None]
        parts.append(((lanes * weights).sum(-2) * 256 + 242) // 243)
    return joined(np.concatenate(parts, -1).astype(np.uint8), bytes_of(scales))


def q1_0(codes: Codes, scales: Scales) -> Bytes:
    """Codes -1 and 1 `[rows, K]` and scales `[rows, K / 128]` -> bytes `[rows, K / 128 * 18]`."""
    bits = (codes > 0).reshape(*scales.shape, BINARY_BLOCK)
    return joined(bytes_of(scales), np.packbits(bits, axis=-1, bitorder="little"))


def bytes_of(scales: Scales) -> Bytes:
    """fp16 `[..., blocks]` -> `[..., blocks, 2]`."""
    return np.ascontiguousarray(scales.astype("<f2"))[..., None].view(np.uint8)


def joined(first: Bytes, second: Bytes) -> Bytes:
    """Blocks of two parts `[rows, blocks, bytes]`, row by row."""
    return np.ascontiguousarray(np.concatenate([first, second], -1)).reshape(len(first), -1)
