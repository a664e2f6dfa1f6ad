"""What the processor allows at best, measured beside the kernels: reading bytes, and bare sums of products.

read_bytes    adds up memory in four accumulators: no kernel reads its weights faster
bare_dots     the instruction of an instruction set on registers alone: no kernel multiplies faster; only for
              sets that have one for products and their sum (elsewhere the products leave the loop)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bitexp.kernels.cpu.dots import BYTES, I64, ISAS, LANES, Builder, Value, splat
from bitexp.kernels.cpu.jit import compiled
from bitexp.kernels.cpu.tile import NAMES, Loop, call, load, spread

CHAINS = 16
"""Independent sums: more than an instruction's latency times how many start per cycle."""


def total(b: Builder, vectors: list[Value]) -> Value:
    """The sum of all lanes, so that nothing before it is dead code."""
    result = vectors[0]
    for vector in vectors[1:]:
        result = b.add(result, vector)
    return b.sext(call(b, "llvm.vector.reduce.add.v16i32", LANES.element, result), I64)


@intrinsic
def read_loop(context, address, size):  # type: ignore[no-untyped-def]
    """The sum of `size` bytes as int32 lanes; a multiple of 256."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        start, count = values
        loop = Loop(b, b.udiv(count, ir.Constant(I64, 256)), *[splat(0, LANES)] * 4)
        base = b.add(start, b.mul(loop.index, ir.Constant(I64, 256)))
        return total(b, loop.close(*(b.add(loop.carried[i], load(b, base, LANES, 64 * i)) for i in range(4))))

    return types.int64(types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def dot_loop(context, isa, turns, seed):  # type: ignore[no-untyped-def]
    """`turns` times `CHAINS` sums of 64 products."""
    dots = ISAS[NAMES[isa.literal_value]].dots

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        _, count, seed = values
        bytes_ = b.bitcast(spread(b, b.trunc(seed, LANES.element), LANES), BYTES)
        loop = Loop(b, count, *[splat(0, LANES)] * CHAINS)
        return total(b, loop.close(*(dots(b, acc, [(bytes_, bytes_)]) for acc in loop.carried)))

    return types.int64(isa, types.int64, types.int64), emit


@functools.cache
def read_bytes() -> Callable[[int, int], int]:
    """`f(address, size)`."""

    def run(address, size):  # type: ignore[no-untyped-def]
        return read_loop(address, size)

    return compiled(run)


@functools.cache
def bare_dots(isa: str) -> Callable[[int, int], int]:
    """`f(turns, seed)`: 64 * CHAINS products each, of the seed's bytes with themselves."""
    number = NAMES.index(isa)

    def run(turns, seed):  # type: ignore[no-untyped-def]
        return dot_loop(number, turns, seed)

    return compiled(run)
