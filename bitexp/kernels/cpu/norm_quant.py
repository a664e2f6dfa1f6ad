"""Rows of a training step, compiled: norms and their backward, codes of weights, and what codes stand for.

Functions take addresses of contiguous memory, `[tokens, features]` or `[tokens]`, fp32 where nothing else is
said, and work on the tokens from `start` to `end`. What may be bf16 comes with its `size`, 4 or 2 bytes a
number. Importing this module needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitexp.kernels.cpu.addresses import bytes_at, floats, halves, narrow, wide_row
from bitexp.kernels.cpu.jit import compiled, of_integers
from bitexp.kernels.cpu.lanes import norm_rows_backward, squares, total, total_magnitude
from bitexp.quant.spec import EPS
from bitexp.quant.sums import BLOCK

Array = Any

F32, I8, I32 = np.float32, np.int8, np.int32
FLOOR = np.float32(EPS)
TOGETHER = 4
"""Tokens whose norms are computed at once: one alone is mostly waiting for its own sums."""
NOTHING = np.float32(-0.0)
"""What changes no number that it is added to."""
ROUND = np.float32(1.5 * 2**23)
"""Added to and subtracted from a float below 2^22 it rounds to the nearest integer, half to even."""


@compiled
def statistics(x: int, features: int, subtract: bool, eps: Any) -> Any:
    """Mean and 1/std of the floats at an address, as `bitexp.quant.norms.normalize` has them."""
    share = F32(1 / np.float64(features))
    mean = total(x, features) * share if subtract else F32(0)
    return mean, F32(1) / np.sqrt(F32(squares(x, features, mean) * share + eps))


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
    grad: int, grad_size: int, x: int, size: int, mean: int, rstd: int, out: int, features: int,
    start: int, end: int,
) -> None:  # fmt: skip
    """The gradient with respect to x from the one with respect to the normed rows; `mean` 0: RMS norm.

    It has the size of x, and may lie where `grad` does.
    """
    room = np.empty((3, TOGETHER * features), np.float32)
    of_out = np.int64(room[2].ctypes.data)
    for i in range(start, end, TOGETHER):
        some = min(TOGETHER, end - i)
        g = wide_row(grad + grad_size * features * i, grad_size, features * some, room[0])
        values = wide_row(x + size * features * i, size, features * some, room[1])
        result = out + 4 * features * i if size == 4 else of_out
        if some == TOGETHER and mean:
            norm_rows_backward(4, 1, g, values, features, mean + 4 * i, rstd + 4 * i, result)
        elif some == TOGETHER:
            norm_rows_backward(4, 0, g, values, features, 0, rstd + 4 * i, result)
        else:
            for k in range(some):
                away, at = 4 * features * k, 4 * (i + k)
                if mean:
                    norm_rows_backward(
                        1, 1, g + away, values + away, features, mean + at, rstd + at, result + away
                    )
                else:
                    norm_rows_backward(1, 0, g + away, values + away, features, 0, rstd + at, result + away)
        if size == 2:
            short = halves(out + 2 * features * i, features * some)
            for j in range(features * some):
                short[j] = narrow(room[2, j])


@of_integers
def dequantize_rows(
    codes: int, scale: int, scales: int, out: int, size: int, features: int, start: int, end: int
) -> None:
    """codes x scales, of which there is one for all rows or one for each."""
    of_rows = floats(scale, scales)
    for i in range(start, end):
        row, s = bytes_at(codes + features * i, features), of_rows[i if scales > 1 else 0]
        if size == 4:
            result = floats(out + 4 * features * i, features)
            for j in range(features):
                result[j] = F32(row[j]) * s
        else:
            short = halves(out + 2 * features * i, features)
            for j in range(features):
                short[j] = narrow(F32(row[j]) * s)


@compiled
def round_row(row: int, scale: Any, low: int, high: int, codes: int, features: int) -> None:
    """int8 codes of a row of weights: rounded and clamped multiples of the scale."""
    lowest, highest, factor = F32(low), F32(high), F32(1) / scale
    values, result = floats(row, features), bytes_at(codes, features)
    for j in range(features):
        value = (min(max(values[j] * factor, lowest - F32(1)), highest + F32(1)) + ROUND) - ROUND
        result[j] = I8(I32(min(max(value, lowest), highest)))


@compiled
def row_mean(row: int, magnitudes: bool, features: int, room: Array) -> Any:
    """The mean of w, or of |w|, in the order of `bitexp.quant.sums.ordered_means`."""
    x, n = np.int64(row), features
    while n > BLOCK:
        blocks = (n + BLOCK - 1) // BLOCK
        for k in range(blocks):
            place, size = x + 4 * BLOCK * k, min(BLOCK, n - BLOCK * k)
            room[k] = total_magnitude(place, size) if magnitudes else total(place, size)
        x, n = np.int64(room.ctypes.data), blocks
    return (total_magnitude(x, n) if magnitudes else total(x, n)) / F32(features)


@compiled
def sign_row(row: int, middle: Any, codes: int, features: int) -> None:
    """int8 codes of a row of weights: 1 above the middle, else -1."""
    values, result = floats(row, features), bytes_at(codes, features)
    for j in range(features):
        result[j] = I8(1) if values[j] > middle else I8(-1)


@of_integers
def round_rows(rows: int, scale: int, low: int, high: int, codes: int, features: int, count: int) -> None:
    """`round_row` of `count` rows, each with its scale."""
    scales = floats(scale, count)
    for i in range(count):
        round_row(rows + 4 * features * i, scales[i], low, high, codes + features * i, features)


@of_integers
def row_means(rows: int, out: int, magnitudes: int, features: int, count: int) -> None:
    """`row_mean` of `count` rows."""
    means, room = floats(out, count), np.empty(features // BLOCK + 1, np.float32)
    for i in range(count):
        means[i] = row_mean(rows + 4 * features * i, magnitudes > 0, features, room)


@of_integers
def sign_rows(rows: int, middle: int, codes: int, features: int, count: int) -> None:
    """`sign_row` of `count` rows, each with its middle."""
    middles = floats(middle, count)
    for i in range(count):
        sign_row(rows + 4 * features * i, middles[i], codes + features * i, features)


@of_integers
def codes_by_means(
    rows: int, signs: int, low: int, high: int, codes: int, scale: int, features: int, count: int
) -> None:
    """Codes of `count` rows, with `signs` around the mean and else rounded, and their scales mean|w|."""
    scales, room = floats(scale, count), np.empty(features // BLOCK + 1, np.float32)
    for i in range(count):
        row, result = rows + 4 * features * i, codes + features * i
        mean = row_mean(row, True, features, room)
        scales[i] = FLOOR if mean < FLOOR else mean
        if signs:
            sign_row(row, row_mean(row, False, features, room), result, features)
        else:
            round_row(row, scales[i], low, high, result, features)
