"""Sums of floats in the order of `bitexp.quant.sums.ordered_sum`, as LLVM IR that numba's functions call.

64 numbers lie in four vectors, which stay in registers; the numbers behind the last whole 64 are -0.0.
Importing this module needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bitexp.kernels.cpu.dots import FLOATS, I32, I64, LANES, Builder, Value, call, part
from bitexp.kernels.cpu.tile import Loop, at, load, spread

VECTORS, BYTES = 4, 64
NOTHING = ir.Constant(FLOATS, [-0.0] * 16)

Read = Callable[[Value], Value]
"""The vector of 16 floats at an address."""


@intrinsic
def total(context, x, count):  # type: ignore[no-untyped-def]
    """The sum of `count` floats at an address."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        return emit_sum(b, values[:1], values[1], lambda x: x)

    return types.float32(types.intp, types.int64), emit


@intrinsic
def squares(context, x, count, mean):  # type: ignore[no-untyped-def]
    """The sum of (x - mean)^2."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        mean = spread(b, values[2], FLOATS)

        def term(x: Value) -> Value:
            away = b.fsub(x, mean)
            return b.fmul(away, away)

        return emit_sum(b, values[:1], values[1], term)

    return types.float32(types.intp, types.int64, types.float32), emit


@intrinsic
def along(context, grad, x, count, mean, rstd):  # type: ignore[no-untyped-def]
    """The sum of grad times ((x - mean) times rstd)."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        mean, rstd = (spread(b, value, FLOATS) for value in values[3:])

        def term(grad: Value, x: Value) -> Value:
            return b.fmul(grad, b.fmul(b.fsub(x, mean), rstd))

        return emit_sum(b, values[:2], values[2], term)

    return types.float32(types.intp, types.intp, types.int64, types.float32, types.float32), emit


def emit_sum(b: Builder, arrays: list[Value], count: Value, term: Callable[..., Value]) -> Value:
    """The sum over what `term` makes of vectors of the arrays, which are addresses of `count` floats."""
    size = ir.Constant(I64, 16 * VECTORS)
    whole = b.sdiv(count, size)
    loop = Loop(b, whole, *[NOTHING] * VECTORS)
    base = b.mul(loop.index, ir.Constant(I64, VECTORS * BYTES))
    sums = loop.close(
        *(
            b.fadd(loop.carried[n], term(*(load(b, b.add(a, base), FLOATS, BYTES * n, 4) for a in arrays)))
            for n in range(VECTORS)
        )
    )
    rest = spread(b, b.trunc(b.srem(count, size), I32), LANES)
    base = b.mul(whole, ir.Constant(I64, VECTORS * BYTES))
    for n in range(VECTORS):
        mask = b.icmp_signed("<", ir.Constant(LANES, list(range(16 * n, 16 * n + 16))), rest)
        found = (masked(b, b.add(a, base), BYTES * n, mask) for a in arrays)
        sums[n] = b.fadd(sums[n], b.select(mask, term(*found), NOTHING))
    vector = b.fadd(b.fadd(sums[0], sums[2]), b.fadd(sums[1], sums[3]))
    for half in (8, 4, 2, 1):
        vector = b.fadd(part(b, vector, 0, half), part(b, vector, half, half))
    return b.extract_element(vector, ir.Constant(I32, 0))


def masked(b: Builder, address: Value, offset: int, mask: Value) -> Value:
    """16 floats, of which only those that the mask names are read."""
    place, align = at(b, address, FLOATS, offset), ir.Constant(I32, 4)
    return call(b, "llvm.masked.load.v16f32.p0", FLOATS, place, align, mask, ir.Constant(FLOATS, [0.0] * 16))
