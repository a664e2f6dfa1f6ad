"""The median of |W|, exactly: the digits of its bits by counting, highest first.

Floats that are not negative lie in the order of their bits. Four passes count the values of 8, 8, 8 and
7 bits among those that share the bits found so far; many programs work on one row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitexp.kernels.gpu.launch import EXACT_STEPS, ceil_div, on_device_of

BINS = 256  # Triton's histogram costs as many instructions as it has bins
PASSES = ((23, 8), (15, 8), (7, 8), (0, 7))
"""(lowest bit, width) of each digit, in 31 bits."""

FEW_ROWS = 64
"""Up to so many; torch's own median gives each row one block of threads, right for more."""


@triton.jit
def count_kernel(
    w, counts, found, largest, size, per_program,
    LOW: tl.constexpr, WIDTH: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    w += row.to(tl.int64) * size
    prefix = tl.load(found + row)
    at = tl.program_id(1).to(tl.int64) * per_program + tl.arange(0, BLOCK)
    total = tl.zeros((BINS,), tl.int32)
    peak = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, per_program, BLOCK):
        inside = at + start < size
        bits = tl.load(w + at + start, mask=inside, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        peak = tl.maximum(peak, bits)
        alike = inside & ((bits >> (LOW + WIDTH)) == prefix)
        total += tl.histogram((bits >> LOW) & ((1 << WIDTH) - 1), BINS, mask=alike)
    bins = tl.arange(0, BINS)
    tl.atomic_add(counts + row * BINS + bins, total, mask=total > 0)
    tl.atomic_max(largest + row, tl.max(peak, 0))


@triton.jit
def select_kernel(counts, found, rank, WIDTH: tl.constexpr, BINS: tl.constexpr):
    """Appends a digit to `found`, makes `rank` that among equals, and clears the counts."""
    row = tl.program_id(0)
    bins = tl.arange(0, BINS)
    count = tl.load(counts + row * BINS + bins)
    wanted = tl.load(rank + row)
    below = tl.cumsum(count, 0) <= wanted
    tl.store(rank + row, wanted - tl.sum(tl.where(below, count, 0), 0))
    tl.store(found + row, (tl.load(found + row) << WIDTH) + tl.sum(below.to(tl.int32), 0))
    tl.store(counts + row * BINS + bins, 0)


def abs_median(rows: Tensor) -> Tensor:
    """`rows.abs().median(-1, keepdim=True).values` of fp32 `[R, n]`, the same bits; NaN where a row has one.

    Raises:
        ValueError: rows of more than 2^31 - 1 values (the counts are int32).
    """
    number, size = rows.shape
    if size >= 2**31:
        raise ValueError(f"a row of {size:,} values is too long for the median of this kernel")
    if number > FEW_ROWS or not rows.numel():
        return rows.abs().median(-1, keepdim=True).values
    rows = rows.float().contiguous()
    counts = torch.zeros(number, BINS, dtype=torch.int32, device=rows.device)
    found, largest = counts.new_zeros(number), counts.new_zeros(number)
    rank = torch.full_like(found, (size - 1) // 2)
    block = 2048
    per_program = ceil_div(ceil_div(size, 1024), block) * block
    with on_device_of(rows):
        for low, width in PASSES:  # no floats are computed; from 3.9 on Triton warns where it is not told
            count_kernel[(number, ceil_div(size, per_program))](
                rows, counts, found, largest, size, per_program,
                LOW=low, WIDTH=width, BINS=BINS, BLOCK=block, **EXACT_STEPS,
            )  # fmt: skip
            select_kernel[(number,)](counts, found, rank, WIDTH=width, BINS=BINS, **EXACT_STEPS)
    median = found.view(torch.float32).masked_fill(largest > 0x7F800000, float("nan"))
    return median[:, None]
