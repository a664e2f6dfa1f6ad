"""A whole layer in one compiled call, from its norm to its bias, for a range of tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from bitexp.kernels.cpu.addresses import floats
from bitexp.kernels.cpu.dots import ISAS
from bitexp.kernels.cpu.jit import compiled
from bitexp.kernels.cpu.norm_quant import FLOOR, statistics
from bitexp.kernels.cpu.tile import NAMES, clear, copy, quantize, tile

ROWS = 80
"""Tokens whose codes are made at once, so that they stay in the second-level cache."""
SPARE = 4 * 64 * max(isa.tiles[0][0] for isa in ISAS.values())
"""Bytes of the outputs of a tile in an unfinished stream."""


def scratch_bytes(inputs: int) -> int:
    """What a layer needs for codes, their sums and scales, unfinished outputs, and a normed token."""
    return ROWS * (inputs + 31 + 8) + SPARE + 4 * 64 + 4 * inputs


@functools.cache
def layer(isa: str, bits: int) -> Callable[..., None]:
    """The layer for an instruction set and a number of bits per code; compiles it at once.

    It is the compiled function itself, without numba's choice by types at each call.
    """
    entry: Callable[..., None] = overload(isa, bits).entry_point
    return entry


@functools.cache
def address(isa: str, bits: int) -> int:
    """Where the machine code of the same layer begins, for compiled code that calls it."""
    compiled = overload(isa, bits)
    code: int = compiled.library.get_pointer_to_function(compiled.fndesc.mangled_name)
    return code


@functools.cache
def overload(isa: str, bits: int) -> Any:
    """What numba has compiled. The arguments, in order, all of them integers:

    w, scale          addresses of packed codes, and of float32 scales for every output of all streams,
                      with 64 times -0.0 behind them
    inputs, outputs   of the layer
    qmax              the largest activation code
    bias, scaled      address of float32 bias (0: none), and whether it is added before the scales
    norm              of each token, one of `bitexp.kernels.cpu.layout.NORMS`
    x, y              addresses of float32 `[tokens, inputs]` and `[tokens, outputs]`
    scratch           address of `scratch_bytes` of memory, for one call at a time
    token, tokens     the tokens to compute: the first, and the one behind the last
    stream, streams   likewise the streams of 64 outputs
    """
    number = NAMES.index(isa)
    (tokens_a, panels_a), (tokens_b, panels_b), (tokens_c, panels_c) = ISAS[isa].tiles
    groups = 8 // bits

    def run(  # type: ignore[no-untyped-def]
        w, scale, inputs, outputs, qmax, bias, scaled, norm, x, y, scratch, token, tokens, stream, streams
    ):  # fmt: skip
        blocks = (inputs + 4 * groups - 1) // (4 * groups)
        filled = (inputs + 15) // 16 * 16
        ldq = max(blocks * 4 * groups, filled)
        rows = max(1, min(ROWS, tokens - token))
        q, sums, x_scales = scratch, scratch + rows * ldq, scratch + rows * (ldq + 4)
        spare, padded = scratch + rows * (ldq + 8), scratch + rows * (ldq + 8) + SPARE
        normed = padded + 4 * 64
        nothing = scale + (outputs + 63) // 64 * 256
        if bias and outputs % 64:
            copy(bias + 4 * (outputs - outputs % 64), padded, 4 * (outputs % 64))
        before, step_before = (bias, 256) if bias and scaled else (nothing, 0)
        behind, step_behind = (bias, 256) if bias and not scaled else (nothing, 0)
        for start in range(token, tokens, rows):
            end = min(start + rows, tokens)
            for r in range(end - start):
                line, source = q + r * ldq, x + 4 * inputs * (start + r)
                if norm > 0:
                    mean, rstd = statistics(source, inputs, norm == 2, FLOOR)
                    given, target = floats(source, inputs), floats(normed, inputs)
                    for j in range(inputs):
                        target[j] = (given[j] - mean) * rstd
                    source = normed
                quantize(source, inputs, line, np.float32(qmax), sums + 4 * r, x_scales + 4 * r)
                clear(line + filled, ldq - filled)
            first = stream
            if end - start == 1:  # in a loop of its own: where rows are short, every instruction counts
                first = max(stream, min(streams, outputs // 64))
                for s in range(stream, first):
                    tile(number, bits, 1, 4, w + s * blocks * 256, blocks, q, 0, sums, x_scales,
                         scale + s * 256, before + s * step_before, behind + s * step_behind,
                         y + 4 * (start * outputs + 64 * s), 0)  # fmt: skip
            for s in range(first, streams):
                codes, factors, whole = w + s * blocks * 256, scale + s * 256, 64 * (s + 1) <= outputs
                pre = post = nothing
                if bias:
                    addend = bias + 256 * s if whole else padded
                    pre, post = (addend, nothing) if scaled else (nothing, addend)
                m = start
                while m < end:
                    r = m - start
                    line, total, x_scale = q + r * ldq, sums + 4 * r, x_scales + 4 * r
                    target, ldy = (y + 4 * (m * outputs + 64 * s), 4 * outputs) if whole else (spare, 256)
                    if m + tokens_a <= end:
                        size = tokens_a
                        for p in range(0, 64 * 4, 64 * panels_a):
                            tile(number, bits, tokens_a, panels_a, codes + p, blocks, line, ldq,
                                 total, x_scale, factors + p, pre + p, post + p, target + p, ldy)  # fmt: skip
                    elif m + tokens_b <= end:
                        size = tokens_b
                        for p in range(0, 64 * 4, 64 * panels_b):
                            tile(number, bits, tokens_b, panels_b, codes + p, blocks, line, ldq,
                                 total, x_scale, factors + p, pre + p, post + p, target + p, ldy)  # fmt: skip
                    elif m + tokens_c <= end:
                        size = tokens_c
                        for p in range(0, 64 * 4, 64 * panels_c):
                            tile(number, bits, tokens_c, panels_c, codes + p, blocks, line, ldq,
                                 total, x_scale, factors + p, pre + p, post + p, target + p, ldy)  # fmt: skip
                    else:
                        size = 1
                        tile(number, bits, 1, 4, codes, blocks, line, ldq,
                             total, x_scale, factors, pre, post, target, ldy)  # fmt: skip
                    if not whole:
                        for i in range(size):
                            place = y + 4 * ((m + i) * outputs + 64 * s)
                            copy(spare + 256 * i, place, 4 * (outputs - 64 * s))
                    m += size

    # code is found by this name, and what numba adds to it is a number that another process may give as well
    run.__qualname__ = f"layer_{number}_{bits}"
    function, nothing = compiled(run), (0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    function(*nothing)
    return function.overloads[(types.int64,) * len(nothing)]  # type: ignore[attr-defined]
