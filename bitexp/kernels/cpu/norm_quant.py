"""Rows of a training step, compiled: norm and quantization in one pass, their backward, and the scales.

All arrays are C-contiguous, `[tokens, features]` or `[tokens]`, fp32 where nothing else is said. Importing
this module needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitexp.kernels.cpu.jit import compiled
from bitexp.kernels.cpu.lanes import along, squares, total
from bitexp.quant.spec import EPS

Array = Any

F32, I8, I32, U32 = np.float32, np.int8, np.int32, np.uint32
FLOOR = np.float32(EPS)
MAGNITUDE = np.uint32(0x7FFFFFFF)
ROUND = np.float32(1.5 * 2**23)
"""Added to and subtracted from a float below 2^22 it rounds to the nearest integer, half to even."""


@compiled
def quantize_row(x: Array, qmax: Any, codes: Array) -> Any:
    """int8 codes of a row by the formula of `absmax_codes`; returns their scale, which NaN and inf reach."""
    bits = x.view(np.uint32)
    largest = U32(0)
    for j in range(x.size):  # magnitudes of floats are ordered as their bits are, NaN above all
        magnitude = U32(bits[j] & MAGNITUDE)
        largest = magnitude if magnitude > largest else largest
    absmax = U32(largest).view(np.float32)
    if absmax < FLOOR:
        absmax = FLOOR
    factor = (F32(1) / absmax) * qmax
    if qmax > F32(127):
        for j in range(x.size):
            codes[j] = I8(I32(min((x[j] * factor + ROUND) - ROUND, F32(127))))
    else:
        for j in range(x.size):
            codes[j] = I8(I32((x[j] * factor + ROUND) - ROUND))
    return absmax / qmax


@compiled
def statistics(x: Array, share: Any, subtract: bool) -> Any:
    """Mean and 1/std of a row as `bitexp.quant.norms.normalize` has them; `share` is 1 / features."""
    mean = total(x.ctypes.data, x.size) * share if subtract else F32(0)
    return mean, F32(1) / np.sqrt(squares(x.ctypes.data, x.size, mean) * share + FLOOR)


@compiled
def norm_quantize(
    x: Array, codes: Array, scale: Array, mean: Array, rstd: Array, qmax: Any, subtract: bool
) -> None:
    """Codes and scales of the normed rows, and the mean and 1/std of x; `subtract`: layer norm, else RMS."""
    share = F32(1 / np.float64(x.shape[1]))
    normed = np.empty(x.shape[1], np.float32)
    for i in range(x.shape[0]):
        row = x[i]
        m, r = statistics(row, share, subtract)
        for j in range(row.size):
            normed[j] = (row[j] - m) * r
        scale[i] = quantize_row(normed, qmax, codes[i])
        mean[i], rstd[i] = m, r


@compiled
def normalize(x: Array, out: Array, mean: Array, rstd: Array, subtract: bool) -> None:
    """The normed rows, and the mean and 1/std of x."""
    share = F32(1 / np.float64(x.shape[1]))
    for i in range(x.shape[0]):
        row, result = x[i], out[i]
        m, r = statistics(row, share, subtract)
        for j in range(row.size):
            result[j] = (row[j] - m) * r
        mean[i], rstd[i] = m, r


@compiled
def quantize(x: Array, codes: Array, scale: Array, qmax: Any) -> None:
    """Codes and scales of the rows as they are."""
    for i in range(x.shape[0]):
        scale[i] = quantize_row(x[i], qmax, codes[i])


@compiled
def norm_backward(grad: Array, x: Array, mean: Array, rstd: Array, out: Array, subtract: bool) -> None:
    """The gradient with respect to x from the one with respect to the normed rows."""
    share = F32(1 / np.float64(x.shape[1]))
    for i in range(x.shape[0]):
        g, row, result, m, r = grad[i], x[i], out[i], mean[i], rstd[i]
        slope = along(g.ctypes.data, row.ctypes.data, row.size, m, r) * share
        plain = total(g.ctypes.data, g.size) * share if subtract else F32(0)
        for j in range(row.size):
            result[j] = ((g[j] - plain) - ((row[j] - m) * r) * slope) * r


@compiled
def rescale(sums: Array, scale: Array, w_scale: Array, bias: Array, scaled_bias: bool) -> None:
    """int32 sums become the bits of fp32 outputs where they lie: sum x (scale x weight scale) + bias.

    `w_scale` has a scale per output; `bias` is empty where there is none.
    """
    for i in range(sums.shape[0]):
        row, s = sums[i], scale[i]
        if bias.size == 0:
            for j in range(row.size):
                row[j] = F32(F32(row[j]) * (s * w_scale[j])).view(np.int32)
        elif scaled_bias:
            for j in range(row.size):
                row[j] = F32((F32(row[j]) + bias[j]) * (s * w_scale[j])).view(np.int32)
        else:
            for j in range(row.size):
                row[j] = F32(F32(row[j]) * (s * w_scale[j]) + bias[j]).view(np.int32)


@compiled
def dequantize_rows(codes: Array, scale: Array, out: Array) -> None:
    """codes x scales."""
    for i in range(codes.shape[0]):
        row, result, s = codes[i], out[i], scale[i]
        for j in range(row.size):
            result[j] = F32(row[j]) * s


@compiled
def round_rows(rows: Array, scale: Array, low: int, high: int, codes: Array) -> None:
    """Codes of weights, row by row: rounded and clamped multiples of the row's scale."""
    lowest, highest = F32(low), F32(high)
    for i in range(rows.shape[0]):
        row, result, factor = rows[i], codes[i], F32(1) / scale[i]
        for j in range(row.size):
            value = (min(max(row[j] * factor, lowest - F32(1)), highest + F32(1)) + ROUND) - ROUND
            result[j] = I8(I32(min(max(value, lowest), highest)))
