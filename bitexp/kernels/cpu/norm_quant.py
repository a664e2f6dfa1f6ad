"""Rows of a training step, compiled: norm and quantization in one pass, their backward, and the scales.

Functions take addresses of contiguous memory, `[tokens, features]` or `[tokens]`, fp32 where nothing else is
said, and work on the tokens from `start` to `end`. Importing this module needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitexp.kernels.cpu.addresses import bytes_at, floats, integers
from bitexp.kernels.cpu.jit import compiled, of_integers
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
def statistics(x: int, features: int, subtract: bool, eps: Any) -> Any:
    """Mean and 1/std of the floats at an address, as `bitexp.quant.norms.normalize` has them."""
    share = F32(1 / np.float64(features))
    mean = total(x, features) * share if subtract else F32(0)
    return mean, F32(1) / np.sqrt(F32(squares(x, features, mean) * share + eps))


@of_integers
def norm_quantize(
    x: int, codes: int, scale: int, mean: int, rstd: int, features: int, qmax: int, norm: int,
    start: int, end: int,
) -> None:  # fmt: skip
    """int8 codes and scales of the normed rows, and the mean and 1/std of x.

    `norm` is a number of `bitexp.kernels.cpu.layout.NORMS`; what it does not have is not written.
    """
    largest, centered = F32(qmax), norm == 2
    scales, means, rstds = floats(scale, end), floats(mean, end), floats(rstd, end)
    normed = np.empty(features, np.float32)
    for i in range(start, end):
        row, out = floats(x + 4 * features * i, features), bytes_at(codes + features * i, features)
        if norm == 0:
            scales[i] = quantize_row(row, largest, out)
        else:
            m, r = statistics(x + 4 * features * i, features, centered, FLOOR)
            for j in range(features):
                normed[j] = (row[j] - m) * r
            scales[i] = quantize_row(normed, largest, out)
            rstds[i] = r
            if centered:
                means[i] = m


@of_integers
def normalize(
    x: int, out: int, mean: int, rstd: int, features: int, centered: int, start: int, end: int
) -> None:
    """The normed rows, and the mean and 1/std of x; without `centered` (RMS norm) no mean is written."""
    means, rstds = floats(mean, end), floats(rstd, end)
    for i in range(start, end):
        row, result = floats(x + 4 * features * i, features), floats(out + 4 * features * i, features)
        m, r = statistics(x + 4 * features * i, features, centered > 0, FLOOR)
        for j in range(features):
            result[j] = (row[j] - m) * r
        rstds[i] = r
        if centered > 0:
            means[i] = m


@of_integers
def norm_backward(
    grad: int, x: int, mean: int, rstd: int, out: int, features: int, start: int, end: int
) -> None:
    """The gradient with respect to x from the one with respect to the normed rows; `mean` 0: RMS norm."""
    share = F32(1 / np.float64(features))
    means, rstds = floats(mean, end), floats(rstd, end)
    for i in range(start, end):
        away = 4 * features * i
        g, row, result = (
            floats(grad + away, features),
            floats(x + away, features),
            floats(out + away, features),
        )
        m, r = means[i] if mean else F32(0), rstds[i]
        slope = along(grad + away, x + away, features, m, r) * share
        plain = total(grad + away, features) * share if mean else F32(0)
        for j in range(features):
            result[j] = ((g[j] - plain) - ((row[j] - m) * r) * slope) * r


@of_integers
def rescale(
    sums: int, scale: int, w_scale: int, scales: int, bias: int, scaled_bias: int, outputs: int,
    start: int, end: int,
) -> None:  # fmt: skip
    """int32 sums become fp32 outputs where they lie: sum x (scale x weight scale) + bias.

    There are `scales` weight scales, one or as many as outputs; `bias` 0: there is none.
    """
    of_tokens, of_outputs = floats(scale, end), floats(w_scale, scales)
    factors, offsets = np.empty(outputs, np.float32), floats(bias, outputs)
    for j in range(outputs):
        factors[j] = of_outputs[j if scales > 1 else 0]
    for i in range(start, end):
        row, s = integers(sums + 4 * outputs * i, outputs), of_tokens[i]
        if bias == 0:
            for j in range(outputs):
                row[j] = F32(F32(row[j]) * (s * factors[j])).view(np.int32)
        elif scaled_bias > 0:
            for j in range(outputs):
                row[j] = F32((F32(row[j]) + offsets[j]) * (s * factors[j])).view(np.int32)
        else:
            for j in range(outputs):
                row[j] = F32(F32(row[j]) * (s * factors[j]) + offsets[j]).view(np.int32)


@of_integers
def dequantize_rows(
    codes: int, scale: int, scales: int, out: int, features: int, start: int, end: int
) -> None:
    """codes x scales, of which there is one for all rows or one for each."""
    of_rows = floats(scale, scales)
    for i in range(start, end):
        row, result = bytes_at(codes + features * i, features), floats(out + 4 * features * i, features)
        s = of_rows[i if scales > 1 else 0]
        for j in range(features):
            result[j] = F32(row[j]) * s


@of_integers
def round_rows(rows: int, scale: int, low: int, high: int, codes: int, features: int, count: int) -> None:
    """int8 codes of `count` rows of weights: rounded and clamped multiples of the row's scale."""
    lowest, highest, scales = F32(low), F32(high), floats(scale, count)
    for i in range(count):
        row, result = floats(rows + 4 * features * i, features), bytes_at(codes + features * i, features)
        factor = F32(1) / scales[i]
        for j in range(features):
            value = (min(max(row[j] * factor, lowest - F32(1)), highest + F32(1)) + ROUND) - ROUND
            result[j] = I8(I32(min(max(value, lowest), highest)))
