"""What the GPU kernels share: unpacking, row statistics, activation codes, and the last steps of a product.

Functions with `ASM` have a plain Triton twin beside the PTX: for AMD, and for Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

SHIFT = tl.constexpr(12582912.0)
"""1.5 * 2^23: where it is added, |t| < 2^22 is rounded half to even, and lies in the low bits."""


@triton.constexpr_function
def field_asm(shift, bits):
    """A field of four bytes at once, where Triton would convert each byte by itself."""
    mask = "0x01010101" if bits == 1 else "0x03030303"
    return f"{{ .reg .b32 t; shr.b32 t, $1, {shift}; and.b32 $0, t, {mask}; }}"


@triton.jit
def field(data, AT: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):
    """The digit at bit `AT` of each byte of a uint8 tile, as int8."""
    if ASM:
        asm: tl.constexpr = field_asm(AT, BITS)
        digit = tl.inline_asm_elementwise(asm, "=r,r", [data], dtype=tl.int8, is_pure=True, pack=4)
    else:
        digit = ((data >> AT) & (2 * BITS - 1)).to(tl.int8)
    return digit


@triton.jit
def pair(data, FIRST: tl.constexpr, SECOND: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):
    """The digits at two bits, side by side in a new last dimension."""
    return tl.join(field(data, FIRST, BITS, ASM), field(data, SECOND, BITS, ASM))


@triton.jit
def unpacked(data, ROWS: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr):
    """uint8 `[ROWS, K * BITS / 8]` in runs of 16 bytes -> int8 digits `[ROWS, K]`."""
    RUNS: tl.constexpr = K * BITS // 128
    # joins add dimensions of two behind the bytes; in a run the digits' number comes before the byte
    if BITS == 2:
        digits = tl.join(pair(data, 0, 2, 2, ASM), pair(data, 4, 6, 2, ASM))
        digits = digits.reshape(ROWS, RUNS, 16, 2, 2).permute(0, 1, 4, 3, 2)
    else:
        low = tl.join(pair(data, 0, 1, 1, ASM), pair(data, 2, 3, 1, ASM))
        high = tl.join(pair(data, 4, 5, 1, ASM), pair(data, 6, 7, 1, ASM))
        digits = tl.join(low, high).reshape(ROWS, RUNS, 16, 2, 2, 2).permute(0, 1, 5, 4, 3, 2)
    return digits.reshape(ROWS, K)


@triton.jit
def larger(a, b):
    """The maximum, NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def centered(x, k, K, mean, NORM: tl.constexpr):
    """x at k less the mean, 0 beyond K."""
    v = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
    if NORM == "layer":
        v = tl.where(k < K, v - mean, 0.0)
    return v


@triton.jit
def normed(x, k, K, mean, rstd, NORM: tl.constexpr):
    """The normed x at k, 0 beyond K."""
    v = centered(x, k, K, mean, NORM)
    if NORM != "none":
        v = v * rstd
    return v


@triton.jit
def row_statistics(x, K, EPS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr):
    """Of one row: mean and 1/std (0 and 1 without a norm), and the absmax of the normed row."""
    at = tl.arange(0, BLOCK)
    mean = 0.0
    rstd = 1.0
    if NORM == "layer":
        total = tl.zeros((BLOCK,), tl.float32)
        for k in range(0, K, BLOCK):
            total += tl.load(x + k + at, mask=k + at < K, other=0.0).to(tl.float32)
        mean = tl.sum(total, 0) / K
    if NORM != "none":
        total = tl.zeros((BLOCK,), tl.float32)
        for k in range(0, K, BLOCK):
            v = centered(x, k + at, K, mean, NORM)
            total += v * v
        rstd = tl.rsqrt(tl.sum(total, 0) / K + EPS)
    largest = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, K, BLOCK):
        largest = larger(largest, tl.abs(centered(x, k + at, K, mean, NORM)))
    # rounding is monotone: the largest |v - mean| times rstd is the largest of the products
    return mean, rstd, larger(tl.reduce(largest, 0, larger) * rstd, EPS)


@triton.jit
def activation_bits(v, factor, QMAX: tl.constexpr):
    """int32 whose low byte is the int8 code `rint(v * factor)`, half to even."""
    t = v * factor + SHIFT
    if QMAX > 127:
        t = tl.minimum(t, SHIFT + 127.0)  # a code 128 becomes 127
    return t.to(tl.int32, bitcast=True)


@triton.jit
def code_factor(absmax, QMAX: tl.constexpr):
    """What torch computes for `QMAX / absmax`: the rounded reciprocal, times QMAX."""
    return tl.div_rn(1.0, absmax) * QMAX


@triton.jit
def scaled(total, x_scale, w_scale, bias, BIAS: tl.constexpr):
    """fp32 outputs from int32 sums; every step rounded by itself (compile with enable_fp_fusion=False)."""
    y = total.to(tl.float32)
    if BIAS == "scaled":
        y = y + bias
    y = y * (x_scale * w_scale)
    if BIAS == "plain":
        y = y + bias
    return y


@triton.jit
def from_digits(total, x_sum, BITS: tl.constexpr):
    """The sum over codes from the sum over digits: codes are `digit - 1`, in one bit `2 digit - 1`."""
    if BITS == 1:
        total = total + total
    return total - x_sum


@triton.jit
def at_row(base, row, stride):
    """The address of a row, in 64 bits: activations of long sequences pass 2^31 elements."""
    return base + row.to(tl.int64) * stride
