"""Attention of one query, as LLVM IR that numba's functions call: products with keys, and the mix of values.

    products_with_rows   out[j] = x . rows[j]
    sum_of_rows          out = the sum of x[j] * rows[j]

Rows are `[count, size]` fp32, each behind the other. Four of them are worked on at once, so that no sum waits
for another; products and sums may be fused. Importing this module needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bitexp.kernels.cpu.dots import F32, FLOATS, I32, I64, LANES, Builder, Value
from bitexp.kernels.cpu.lanes import masked
from bitexp.kernels.cpu.tile import Loop, at, load, spread, store

ROWS, BYTES = 4, 64
ZERO = ir.Constant(FLOATS, [0.0] * 16)

Read = Callable[[Value], Value]
"""16 floats at an address, or fewer and zeros."""


def number(value: int) -> Value:
    return ir.Constant(I64, value)


def plus_product(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """total + x * y."""
    return b.fadd(total, b.fmul(x, y, flags=("contract",)), flags=("contract",))


def in_vectors(b: Builder, size: Value, body: Callable[..., list[Value]], *starts: Value) -> list[Value]:
    """Goes through `size` floats in vectors of 16: `body(offset in bytes, read, mask, *carried)`.

    The mask is None but for the last vector, where there are fewer.
    """
    whole = b.sdiv(size, number(16))
    loop = Loop(b, whole, *starts)
    found = body(b.mul(loop.index, number(BYTES)), lambda a: load(b, a, FLOATS, 0, 4), None, *loop.carried)
    carried = loop.close(*found)
    rest = b.srem(size, number(16))
    mask = b.icmp_signed("<", ir.Constant(LANES, list(range(16))), spread(b, b.trunc(rest, I32), LANES))
    loop = Loop(b, b.zext(b.icmp_signed(">", rest, number(0)), I64), *carried)
    found = body(b.mul(whole, number(BYTES)), lambda a: masked(b, a, 0, mask), mask, *loop.carried)
    return loop.close(*found)


def in_fours(b: Builder, count: Value, body: Callable[..., list[Value]], *starts: Value) -> list[Value]:
    """Goes through `count` rows, four at a time as long as there are four: `body(row, rows, *carried)`."""
    fours = b.sdiv(count, number(ROWS))
    loop = Loop(b, fours, *starts)
    carried = loop.close(*body(b.mul(loop.index, number(ROWS)), ROWS, *loop.carried))
    done = b.mul(fours, number(ROWS))
    loop = Loop(b, b.sub(count, done), *carried)
    return loop.close(*body(b.add(loop.index, done), 1, *loop.carried))


def horizontal(b: Builder, vector: Value) -> Value:
    """The sum of 16 floats, in any order."""
    name, kind = "llvm.vector.reduce.fadd.v16f32", ir.FunctionType(F32, [F32, FLOATS])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, [ir.Constant(F32, -0.0), vector], fastmath=("reassoc",))


@intrinsic
def products_with_rows(context, x, rows, count, size, out):  # type: ignore[no-untyped-def]
    """All of them addresses and numbers, see above."""

    def emit(context: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        x, rows, count, size, out = values
        width = b.mul(size, number(4))

        def some(row: Value, many: int) -> list[Value]:
            first = b.add(rows, b.mul(row, width))
            places = [b.add(first, b.mul(width, number(i))) for i in range(many)]

            def vector(offset: Value, read: Read, _: Any, *sums: Value) -> list[Value]:
                given = read(b.add(x, offset))
                return [
                    plus_product(b, s, given, read(b.add(p, offset)))
                    for s, p in zip(sums, places, strict=True)
                ]

            target = b.add(out, b.mul(row, number(4)))
            for i, total in enumerate(in_vectors(b, size, vector, *[ZERO] * many)):
                store(b, horizontal(b, total), target, 4 * i, 4)
            return []

        in_fours(b, count, some)
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 5), emit


@intrinsic
def sum_of_rows(context, x, rows, count, size, out):  # type: ignore[no-untyped-def]
    """All of them addresses and numbers, see above."""

    def emit(context: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        x, rows, count, size, out = values
        width = b.mul(size, number(4))

        def column(offset: Value, read: Read, mask: Any) -> list[Value]:
            def some(row: Value, many: int, *sums: Value) -> list[Value]:
                first, factor = b.add(b.add(rows, offset), b.mul(row, width)), b.add(x, b.mul(row, number(4)))
                found = list(sums)
                for i in range(many):
                    share = spread(b, load(b, factor, F32, 4 * i, 4), FLOATS)
                    found[i] = plus_product(b, sums[i], share, read(b.add(first, b.mul(width, number(i)))))
                return found

            sums = in_fours(b, count, some, *[ZERO] * ROWS)
            total = b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3]))
            place = b.add(out, offset)
            if mask is None:
                store(b, total, place, 0, 4)
            else:
                kind = ir.FunctionType(ir.VoidType(), [FLOATS, FLOATS.as_pointer(), I32, mask.type])
                name = "llvm.masked.store.v16f32.p0"
                function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
                b.call(function, [total, at(b, place, FLOATS), ir.Constant(I32, 4), mask])
            return []

        in_vectors(b, size, column)
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 5), emit
