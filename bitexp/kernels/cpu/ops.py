"""What stands between the layers of a network, compiled: norms, activations, attention, products with floats.

All arrays are C-contiguous fp32, `[rows, features]` or one row of it. Except in norms, sums of floats are
added in the order of the machine's vectors, so the last bits are not torch's. The functions are parts of the
program, which is kept on disk as a whole (`program.py`). Importing this module needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from bitexp.kernels.cpu.addresses import part
from bitexp.kernels.cpu.attention import products_with_rows, sum_of_rows
from bitexp.kernels.cpu.norm_quant import statistics

Array = Any

F32, I32 = np.float32, np.int32
ROUND = F32(1.5 * 2**23)
"""Added to and subtracted from a float below 2^22 it rounds to the nearest integer, half to even."""
LOWEST, HIGHEST = F32(-87.3), F32(88.3)
LOG2E, LN2_HIGH, LN2_LOW = F32(1.4426950408889634), F32(0.693359375), F32(-2.12194440e-4)
ROOT_HALF, HALF = F32(0.7071067811865476), F32(0.5)
SILU, RELU2, RELU, GELU = range(4)
ACTIVATIONS = {"silu": SILU, "relu2": RELU2, "relu": RELU, "gelu": GELU}
"""The numbers of activations by name."""

fused = njit(nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
"""The same where a product may be added without being rounded before."""
summed = njit(nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract", "reassoc"})
"""The same for sums in any order."""


@summed
def total(x: Array) -> Any:
    """Sum of x."""
    out = F32(0)
    for j in range(x.size):
        out += x[j]
    return out


@part
def within(x: Any, low: Any, high: Any) -> Any:
    """x, or the limit that it lies beyond."""
    x = low if x < low else x
    return high if x > high else x


@fused
def power(x: Any) -> Any:
    """e^x to 2 units in the last place for x from `LOWEST` to `HIGHEST`."""
    rounded = F32(x * LOG2E + ROUND)
    n = F32(rounded - ROUND)
    r = F32(F32(x - n * LN2_HIGH) - n * LN2_LOW)
    p = F32(1.9875691500e-4)
    p = F32(p * r + F32(1.3981999507e-3))
    p = F32(p * r + F32(8.3334519073e-3))
    p = F32(p * r + F32(4.1665795894e-2))
    p = F32(p * r + F32(1.6666665459e-1))
    p = F32(p * r + F32(5.0000001201e-1))
    p = F32(F32(F32(p * r) * r + r) + F32(1))
    exponent = I32(rounded.view(np.int32) << I32(23))  # n is in the lowest bits
    return F32(p * I32(exponent + I32(127 << 23)).view(np.float32))


@part
def exp(x: Any) -> Any:
    """e^x; beyond -87 and 88 its values there. Loops of it become vectors."""
    return power(within(x, LOWEST, HIGHEST))


@fused
def erf(x: Any) -> Any:
    """The error function to 4e-7, by the rational approximation that Eigen has for fp32."""
    x = F32(-4) if x < F32(-4) else x
    x = F32(4) if x > F32(4) else x
    s = F32(x * x)
    p = F32(-2.72614225801306e-10)
    p = F32(p * s + F32(2.77068142495902e-08))
    p = F32(p * s + F32(-2.10102402082508e-06))
    p = F32(p * s + F32(-5.69250639462346e-05))
    p = F32(p * s + F32(-7.34990630326855e-04))
    p = F32(p * s + F32(-2.95459980854025e-03))
    p = F32(p * s + F32(-1.60960333262415e-02))
    q = F32(-1.45660718464996e-05)
    q = F32(q * s + F32(-2.13374055278905e-04))
    q = F32(q * s + F32(-1.68282697438203e-03))
    q = F32(q * s + F32(-7.37332916720468e-03))
    q = F32(q * s + F32(-1.42647390514189e-02))
    return F32(F32(x * p) / q)


@part
def silu(x: Any) -> Any:
    """x times its logistic function."""
    return x / (F32(1) + power(-within(x, -HIGHEST, -LOWEST)))


@part
def relu2(x: Any) -> Any:
    """The square of what is positive."""
    positive = F32(0) if x < F32(0) else x
    return positive * positive


@part
def activate(kind: int, x: Array, out: Array) -> None:
    """An activation of `ACTIVATIONS`, element by element."""
    if kind == SILU:
        for j in range(x.size):
            out[j] = silu(x[j])
    elif kind == RELU2:
        for j in range(x.size):
            out[j] = relu2(x[j])
    elif kind == RELU:
        for j in range(x.size):
            out[j] = F32(0) if x[j] < F32(0) else x[j]
    else:
        for j in range(x.size):
            out[j] = (x[j] * HALF) * (F32(1) + erf(x[j] * ROOT_HALF))


@part
def gated(kind: int, gate: Array, up: Array, out: Array) -> None:
    """silu(gate) * up, or relu2(gate) * up."""
    if kind == SILU:
        for j in range(up.size):
            out[j] = silu(gate[j]) * up[j]
    else:
        for j in range(up.size):
            out[j] = relu2(gate[j]) * up[j]


@part
def norm(x: Array, subtract: bool, eps: Any, weight: Array, bias: Array, out: Array) -> None:
    """Layer norm of a row (`subtract`) or RMS norm, then weight and bias where they are not empty.

    Without these it has the bits of a quantized layer's own norm.
    """
    mean, rstd = statistics(x.ctypes.data, x.size, subtract, F32(eps))
    if weight.size == 0:
        for j in range(x.size):
            out[j] = (x[j] - mean) * rstd
    else:
        for j in range(x.size):
            out[j] = ((x[j] - mean) * rstd) * weight[j]
    for j in range(bias.size):
        out[j] += bias[j]


@summed
def dot(x: Array, y: Array) -> Any:
    """Sum of x * y."""
    out = F32(0)
    for j in range(x.size):
        out += x[j] * y[j]
    return out


@part
def dense(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """`[rows, inputs]` times `[outputs, inputs]`, each weight read once; bias may be empty."""
    for n in range(weight.shape[0]):
        added = bias[n] if bias.size else F32(0)
        for r in range(x.shape[0]):
            out[r, n] = dot(x[r], weight[n]) + added


@summed
def dot_int8(x: Array, codes: Array) -> Any:
    """The same with int8 codes."""
    out = F32(0)
    for j in range(x.size):
        out += x[j] * F32(codes[j])
    return out


@part
def dense_int8(x: Array, codes: Array, scale: Array, bias: Array, out: Array) -> None:
    """`dense` with weights that are codes times a scale per output."""
    for n in range(codes.shape[0]):
        added = bias[n] if bias.size else F32(0)
        for r in range(x.shape[0]):
            out[r, n] = dot_int8(x[r], codes[n]) * scale[n] + added


@part
def rotated(x: Array, cos: Array, sin: Array, out: Array) -> None:
    """A head turned by its position: pairs are (i, i + size / 2)."""
    half = x.size // 2
    for i in range(half):
        out[i] = x[i] * cos[i] - x[half + i] * sin[i]
        out[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i]


@part
def softmax(x: Array) -> None:
    """Of a row, in place."""
    top = x[0]
    for j in range(x.size):
        top = x[j] if x[j] > top else top
    for j in range(x.size):
        x[j] = exp(x[j] - top)
    factor = F32(1) / total(x)
    for j in range(x.size):
        x[j] *= factor


@part
def mixed(q: Array, keys: Array, values: Array, scores: Array, out: Array) -> None:
    """Attention of one query of a head over keys and values `[tokens, head_dim]`; `scores` is scratch."""
    products_with_rows(q.ctypes.data, keys.ctypes.data, scores.size, q.size, scores.ctypes.data)
    mixed_by(q.size, scores, values, out)


@part
def mixed_columns(q: Array, columns: Array, values: Array, scores: Array, out: Array) -> None:
    """The same with keys `[head_dim, tokens]`, for many queries over the same ones."""
    sum_of_rows(q.ctypes.data, columns.ctypes.data, q.size, scores.size, scores.ctypes.data)
    mixed_by(q.size, scores, values, out)


@part
def mixed_by(size: int, products: Array, values: Array, out: Array) -> None:
    """The mix of values `[tokens, head_dim]` by the products of a query with keys, which become shares."""
    scale = F32(1) / np.sqrt(F32(size))
    for j in range(products.size):
        products[j] *= scale
    softmax(products)
    sum_of_rows(products.ctypes.data, values.ctypes.data, products.size, size, out.ctypes.data)


@part
def likeliest(x: Array) -> int:
    """The place of the largest number, the first of equal ones; of a NaN where there is one.

    Numbers are compared as integers, in an order that is theirs, since only then loops become vectors.
    """
    bits = x.view(np.int32)
    top = np.int32(-(2**31))
    for j in range(x.size):
        order = I32(bits[j] ^ I32(I32(bits[j] >> I32(31)) & I32(0x7FFFFFFF)))
        top = order if order > top else top
    for j in range(x.size):
        if I32(bits[j] ^ I32(I32(bits[j] >> I32(31)) & I32(0x7FFFFFFF))) == top:
            return j
    return 0
