"""One to four tokens: norm, activation codes, packed product and scales in a single launch.

Every program quantizes the rows again, which the caches pay for: a second launch would take longer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitexp.kernels.gpu.blocks import (
    activation_bits,
    at_row,
    code_factor,
    from_digits,
    normed,
    row_statistics,
    scaled,
)
from bitexp.kernels.gpu.configs import gemv_tile
from bitexp.kernels.gpu.launch import EXACT_STEPS, ceil_div, on_device_of, use_asm
from bitexp.kernels.gpu.layout import Packed
from bitexp.quant.spec import EPS, Norm

ROWS = 4
"""Tokens that one launch takes."""


@triton.jit
def dot4(a, b, acc, ASM: tl.constexpr):
    """acc + the product of four unsigned bytes in `a` with four signed ones in `b`, summed."""
    if ASM:
        return tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, acc], dtype=tl.int32, is_pure=True, pack=1
        )
    for byte in tl.static_range(4):
        acc += ((a >> (8 * byte)) & 255) * ((b << (24 - 8 * byte)) >> 24)
    return acc


@triton.jit
def row_product(
    acc, sums, x, words, at, K, mean, rstd, factor,
    BN: tl.constexpr, BW: tl.constexpr, BITS: tl.constexpr, QMAX: tl.constexpr, NORM: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Adds a block of one row: `acc` `[BN, BW]` its products, `sums` `[BW]` its codes."""
    PER: tl.constexpr = 8 // BITS
    byte = tl.arange(0, 4)
    for i in tl.static_range(PER):
        k = (at // 4) * (16 * PER) + 16 * i + (at % 4) * 4
        k4 = k[:, None] + byte[None, :]
        bits = activation_bits(normed(x, k4, K, mean, rstd, NORM), factor, QMAX)
        four = tl.sum((bits & 255) << (8 * byte)[None, :], 1)
        sums = dot4(tl.full((BW,), 0x01010101, tl.int32), four, sums, ASM)
        digits = (words >> (BITS * i)) & (0x01010101 * (2 * BITS - 1))
        acc = dot4(digits, tl.broadcast_to(four[None, :], (BN, BW)), acc, ASM)
    return acc, sums


@triton.jit
def finish(
    acc, sums, absmax, w_scale, bias, y, n, N,
    QMAX: tl.constexpr, BITS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    total = from_digits(tl.sum(acc, 1), tl.sum(sums, 0), BITS)
    out = scaled(total, tl.div_rn(absmax, QMAX * 1.0), w_scale, bias, BIAS)
    tl.store(y + n, out.to(y.dtype.element_ty), mask=n < N)


@triton.jit
def gemv_kernel(
    x, w, w_scale, bias, y, N, K, words_per_row, x_stride,
    M: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    QMAX: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, CHANNEL: tl.constexpr, BIAS: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    at = tl.arange(0, BW)
    rows = at_row(w, tl.where(n < N, n, 0), words_per_row)[:, None] + at[None, :]
    words = tl.load(rows, mask=(at < words_per_row)[None, :], other=0)  # on its way while x is read
    x0, x1, x2, x3 = x, x + x_stride, x + 2 * x_stride, x + 3 * x_stride
    mean0, rstd0, max0 = row_statistics(x0, K, EPS, NORM, BLOCK)
    mean1, rstd1, max1 = mean0, rstd0, max0
    mean2, rstd2, max2 = mean0, rstd0, max0
    mean3, rstd3, max3 = mean0, rstd0, max0
    if M > 1:
        mean1, rstd1, max1 = row_statistics(x1, K, EPS, NORM, BLOCK)
    if M > 2:
        mean2, rstd2, max2 = row_statistics(x2, K, EPS, NORM, BLOCK)
    if M > 3:
        mean3, rstd3, max3 = row_statistics(x3, K, EPS, NORM, BLOCK)
    acc0 = tl.zeros((BN, BW), tl.int32)
    sum0 = tl.zeros((BW,), tl.int32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    sum1, sum2, sum3 = sum0, sum0, sum0
    for start in range(0, words_per_row, BW):
        here = start + at
        rows += BW
        following = tl.load(rows, mask=(here + BW < words_per_row)[None, :], other=0)
        acc0, sum0 = row_product(
            acc0, sum0, x0, words, here, K, mean0, rstd0, code_factor(max0, QMAX),
            BN, BW, BITS, QMAX, NORM, ASM,
        )  # fmt: skip
        if M > 1:
            acc1, sum1 = row_product(
                acc1, sum1, x1, words, here, K, mean1, rstd1, code_factor(max1, QMAX),
                BN, BW, BITS, QMAX, NORM, ASM,
            )  # fmt: skip
        if M > 2:
            acc2, sum2 = row_product(
                acc2, sum2, x2, words, here, K, mean2, rstd2, code_factor(max2, QMAX),
                BN, BW, BITS, QMAX, NORM, ASM,
            )  # fmt: skip
        if M > 3:
            acc3, sum3 = row_product(
                acc3, sum3, x3, words, here, K, mean3, rstd3, code_factor(max3, QMAX),
                BN, BW, BITS, QMAX, NORM, ASM,
            )  # fmt: skip
        words = following
    ws = tl.load(w_scale + n, mask=n < N, other=0.0) if CHANNEL else tl.load(w_scale)
    b = 0.0
    if BIAS != "none":
        b = tl.load(bias + n, mask=n < N, other=0.0)
    finish(acc0, sum0, max0, ws, b, y, n, N, QMAX, BITS, BIAS)
    if M > 1:
        finish(acc1, sum1, max1, ws, b, y + N, n, N, QMAX, BITS, BIAS)
    if M > 2:
        finish(acc2, sum2, max2, ws, b, y + 2 * N, n, N, QMAX, BITS, BIAS)
    if M > 3:
        finish(acc3, sum3, max3, ws, b, y + 3 * N, n, N, QMAX, BITS, BIAS)


def gemv(
    x: Tensor, w: Packed, bias: Tensor | None, bias_kind: str, qmax: int, norm: Norm, dtype: torch.dtype
) -> Tensor:
    """Floats `[M, K]` with M in 1..4 -> `[M, N]`."""
    rows = x.shape[0]
    y = torch.empty(rows, w.outputs, dtype=dtype, device=x.device)
    words = w.data.view(torch.int32)
    tile = gemv_tile(rows, w.outputs, words.shape[1])
    with on_device_of(x):
        gemv_kernel[(ceil_div(w.outputs, tile.outputs),)](
            x, words, w.scale, bias, y, w.outputs, w.inputs, words.shape[1], x.stride(0),
            M=rows, BN=tile.outputs, BW=tile.words, BLOCK=tile.block, BITS=w.bits, QMAX=qmax, EPS=EPS,
            NORM=norm, CHANNEL=w.scale.dim() == 1, BIAS=bias_kind, ASM=use_asm(x),
            num_warps=tile.warps, num_stages=tile.stages, **EXACT_STEPS,
        )  # fmt: skip
    return y
