"""Sums over tokens, in the order in which torch adds them: the gradient of a bias.

torch casts a gradient in bf16 to fp32 as a whole before it adds it up, which takes longer than the sum.
Importing this needs numba.
"""

from __future__ import annotations

import numpy as np

from bitexp.kernels.cpu.addresses import floats, halves, part, wide
from bitexp.kernels.cpu.jit import of_integers

WIDE = 64
"""Columns that torch adds up together, with AVX2 and AVX512 alike; what is left of them has another order."""
LEVELS = 4
"""Sums of sums of sums: a sum goes into that of the next level when it has `2^power` terms."""


@part
def add_tokens(x, size, away, tokens, total):  # type: ignore[no-untyped-def]
    """Adds the numbers of `WIDE` columns to `total`, one token after the other, each `away` bytes further."""
    token = 0
    while token + 4 <= tokens:  # four at once, so that the total is read and written as seldom
        at = x + away * token
        if size == 4:
            a, b = floats(at, WIDE), floats(at + away, WIDE)
            c, d = floats(at + 2 * away, WIDE), floats(at + 3 * away, WIDE)
            for j in range(WIDE):
                total[j] = (((total[j] + a[j]) + b[j]) + c[j]) + d[j]
        else:
            e, f = halves(at, WIDE), halves(at + away, WIDE)
            g, h = halves(at + 2 * away, WIDE), halves(at + 3 * away, WIDE)
            for j in range(WIDE):
                total[j] = (((total[j] + wide(e[j])) + wide(f[j])) + wide(g[j])) + wide(h[j])
        token += 4
    while token < tokens:
        if size == 4:
            a = floats(x + away * token, WIDE)
            for j in range(WIDE):
                total[j] += a[j]
        else:
            e = halves(x + away * token, WIDE)
            for j in range(WIDE):
                total[j] += wide(e[j])
        token += 1


@of_integers
def column_sums(x: int, size: int, sums: int, features: int, tokens: int) -> None:
    """`[tokens, features]`, `size` bytes a number (4: fp32, 2: bf16) -> `[features]`, a multiple of `WIDE`.

    The order is that of `multi_row_sum` in ATen/native/cpu/SumKernel.cpp.
    """
    digits = 0
    while (1 << digits) < tokens:
        digits += 1
    power = max(4, digits // LEVELS)
    step, level = 1 << power, np.empty((LEVELS, WIDE), np.float32)
    for first in range(0, features, WIDE):
        level[:] = np.float32(0)
        for token in range(0, tokens, step):
            end = min(token + step, tokens)
            add_tokens(x + size * (features * token + first), size, size * features, end - token, level[0])
            if end - token < step:
                break
            for k in range(1, LEVELS):
                for j in range(WIDE):
                    level[k, j] += level[k - 1, j]
                    level[k - 1, j] = np.float32(0)
                if end & ((step - 1) << (k * power)):
                    break
        result = floats(sums + 4 * first, WIDE)
        for j in range(WIDE):
            result[j] = ((level[0, j] + level[1, j]) + level[2, j]) + level[3, j]
