"""The forward of a layer in training: norm, codes, product, scales and bias in one compiled call.

Weights change with every step, so that they are not packed as they are for a frozen layer: their int8 codes
are laid out for the same tiles, at a byte each (`pack`). Importing this needs numba.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from bitexp.kernels.cpu.addresses import bytes_at, floats, halves, integers, narrow, wide_row
from bitexp.kernels.cpu.dots import ISAS
from bitexp.kernels.cpu.jit import compiled, of_integers
from bitexp.kernels.cpu.lanes import norm_rows
from bitexp.kernels.cpu.layout import STREAM
from bitexp.kernels.cpu.norm_quant import FLOOR, NOTHING, TOGETHER
from bitexp.kernels.cpu.tile import NAMES, copy, quantize, tile

ROWS = 80
"""Tokens whose codes are made at once, so that they stay in the cache."""
SIGN = np.int32(-0x7F7F7F80)
"""Flips the highest bit of four bytes: of an int8 code it makes the code plus 128."""


def packed_bytes(outputs: int, inputs: int) -> int:
    """What `pack` writes."""
    return -(-outputs // STREAM) * STREAM * (-(-inputs // 4) * 4)


@of_integers
def pack(codes: int, packed: int, outputs: int, inputs: int) -> None:
    """int8 codes `[outputs, inputs]` -> digits `[streams, inputs / 4, 64, 4]`, which are 128 more."""
    blocks, streams = (inputs + 3) // 4, (outputs + STREAM - 1) // STREAM
    last = np.zeros(4, np.int8)
    for s in range(streams):
        target = integers(packed + 256 * blocks * s, STREAM * blocks)
        for n in range(min(STREAM, outputs - STREAM * s)):
            row = codes + inputs * (STREAM * s + n)
            words = integers(row, inputs // 4)
            for k in range(inputs // 4):
                target[STREAM * k + n] = words[k] ^ SIGN
            if inputs % 4:
                rest = bytes_at(row + 4 * (inputs // 4), inputs % 4)
                for k in range(inputs % 4):
                    last[k] = rest[k]
                target[STREAM * (blocks - 1) + n] = integers(np.int64(last.ctypes.data), 1)[0] ^ SIGN
        for n in range(outputs - STREAM * s, STREAM):
            for k in range(blocks):
                target[STREAM * k + n] = SIGN


@functools.cache
def forward(isa: str) -> Callable[..., None]:
    """The compiled forward for an instruction set. The arguments, in order, all of them integers:

    x, size           address of `[tokens, inputs]`, and bytes of a number: 4 (fp32) or 2 (bf16)
    packed            address of weights as `pack` lays them
    scale, scales     address of float32 weight scales, and how many there are: one, or one per output
    bias, scaled      address of float32 bias (0: none), and whether it is added before the scales
    norm, qmax        one of `bitexp.kernels.cpu.layout.NORMS`; the largest activation code
    codes             where int8 codes `[tokens, inputs]` go
    scale, mean, rstd where float32 values of the tokens go; what the norm does not have is not written
    y, y_size         address of the outputs `[tokens, outputs]`, of 4 or 2 bytes a number
    inputs, outputs   of the layer
    token, tokens     the tokens to compute: the first, and the one behind the last
    """
    number = NAMES.index(isa)
    (tokens_a, panels_a), (tokens_b, panels_b), (tokens_c, panels_c) = ISAS[isa].tiles

    def run(  # type: ignore[no-untyped-def]
        x, size, packed, w_scale, scales, bias, scaled, norm, qmax, codes, scale, mean, rstd, y, y_size,
        inputs, outputs, token, tokens,
    ):  # fmt: skip
        blocks, filled = (inputs + 3) // 4, (inputs + 15) // 16 * 16
        streams = (outputs + STREAM - 1) // STREAM
        addends = np.empty((3, STREAM * streams), np.float32)
        of_outputs, offsets = floats(w_scale, scales), floats(bias, outputs)
        for j in range(STREAM * streams):
            addends[0, j] = of_outputs[j if scales > 1 else 0] if j < outputs else NOTHING
            offset = offsets[j] if bias and j < outputs else NOTHING
            addends[1, j] = offset if scaled else NOTHING
            addends[2, j] = NOTHING if scaled else offset
        factors = np.int64(addends.ctypes.data)
        lines, spare = np.empty((ROWS, filled), np.int8), np.empty((ROWS, STREAM), np.float32)
        sums, room = np.empty(ROWS, np.int32), np.empty((2, TOGETHER, filled), np.float32)
        of_sums, wide, normed = np.int64(sums.ctypes.data), room[0].reshape(-1), np.int64(room[1].ctypes.data)
        for start in range(token, tokens, ROWS):
            end = min(start + ROWS, tokens)
            q, ldq = codes + inputs * start, inputs
            if filled != inputs:
                q, ldq = np.int64(lines.ctypes.data), filled
            i = start
            while i < end:
                some = TOGETHER if i + TOGETHER <= end else 1
                at = wide_row(x + size * inputs * i, size, inputs * some, wide)
                away, to_mean, to_rstd = 4 * inputs, mean + 4 * i, rstd + 4 * i
                if norm:
                    if some > 1 and norm == 2:
                        norm_rows(4, 1, at, inputs, FLOOR, normed, filled, to_mean, to_rstd)
                    elif some > 1:
                        norm_rows(4, 0, at, inputs, FLOOR, normed, filled, 0, to_rstd)
                    elif norm == 2:
                        norm_rows(1, 1, at, inputs, FLOOR, normed, filled, to_mean, to_rstd)
                    else:
                        norm_rows(1, 0, at, inputs, FLOOR, normed, filled, 0, to_rstd)
                    at, away = normed, 4 * filled
                for k in range(some):
                    r = i - start + k
                    quantize(at + away * k, inputs, q + ldq * r, np.float32(qmax),
                             of_sums + 4 * r, scale + 4 * (i + k))  # fmt: skip
                    if filled != inputs:
                        copy(q + ldq * r, codes + inputs * (i + k), inputs)
                i += some
            for s in range(streams):
                w, of_s, whole = packed + 256 * blocks * s, factors + 256 * s, STREAM * (s + 1) <= outputs
                pre, post = of_s + 256 * streams, of_s + 512 * streams
                direct = whole and y_size == 4
                m = start
                while m < end:
                    line, total, x_scale = q + ldq * (m - start), of_sums + 4 * (m - start), scale + 4 * m
                    target, ldy = np.int64(spare.ctypes.data) + 256 * (m - start), 256
                    if direct:
                        target, ldy = y + 4 * (outputs * m + STREAM * s), 4 * outputs
                    if m + tokens_a <= end:
                        for p in range(0, 64 * 4, 64 * panels_a):
                            tile(number, 8, tokens_a, panels_a, w + p, blocks, line, ldq,
                                 total, x_scale, of_s + p, pre + p, post + p, target + p, ldy)  # fmt: skip
                        m += tokens_a
                    elif m + tokens_b <= end:
                        for p in range(0, 64 * 4, 64 * panels_b):
                            tile(number, 8, tokens_b, panels_b, w + p, blocks, line, ldq,
                                 total, x_scale, of_s + p, pre + p, post + p, target + p, ldy)  # fmt: skip
                        m += tokens_b
                    elif m + tokens_c <= end:
                        for p in range(0, 64 * 4, 64 * panels_c):
                            tile(number, 8, tokens_c, panels_c, w + p, blocks, line, ldq,
                                 total, x_scale, of_s + p, pre + p, post + p, target + p, ldy)  # fmt: skip
                        m += tokens_c
                    else:
                        tile(number, 8, 1, 4, w, blocks, line, ldq,
                             total, x_scale, of_s, pre, post, target, ldy)  # fmt: skip
                        m += 1
                if not direct:
                    count = min(STREAM, outputs - STREAM * s)
                    for m in range(start, end):
                        place = y + y_size * (outputs * m + STREAM * s)
                        if y_size == 4:
                            result = floats(place, count)
                            for j in range(count):
                                result[j] = spare[m - start, j]
                        else:
                            short = halves(place, count)
                            for j in range(count):
                                short[j] = narrow(spare[m - start, j])
        addends[0, 0], sums[0] = (
            NOTHING,
            0,
        )  # numba frees an array after its last use, whoever has its address

    run.__qualname__ = f"forward_{number}"  # see `bitexp.kernels.cpu.layer`
    function = compiled(run)
    nothing = (0, 4, 0, 0, 1, 0, 0, 0, 127, 0, 0, 0, 0, 0, 4, 4, 0, 0, 0)
    function(*nothing)
    code: Any = function.overloads[(types.int64,) * len(nothing)]  # type: ignore[attr-defined]
    entry: Callable[..., None] = code.entry_point
    return entry
