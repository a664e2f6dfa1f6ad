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

from bitexp.kernels.cpu.dots import F32, FLOATS, I32, I64, LANES, Builder, Value, call, part
from bitexp.kernels.cpu.tile import Loop, at, load, spread, store

VECTORS, BYTES, F64 = 4, 64, ir.DoubleType()
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
def total_magnitude(context, x, count):  # type: ignore[no-untyped-def]
    """The sum of |x|."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        return emit_sum(b, values[:1], values[1], lambda x: call(b, "llvm.fabs.v16f32", FLOATS, x))

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


@intrinsic(prefer_literal=True)
def norm_rows(context, rows, centered, x, count, eps, out, stride, means, rstds):  # type: ignore[no-untyped-def]
    """The norms of some rows at once, each as `bitexp.quant.norms.normalize` has it.

    Args:
        rows, centered: constants, the second 1 for a layer norm, 0 for an RMS norm.
        x, count: address of rows of `count` floats.
        out, stride: where they go, `stride` floats from row to row.
        means, rstds: where those of each row go; without `centered` there are no means.
    """
    number, subtract = rows.literal_value, centered.literal_value == 1

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        emit_norms(b, number, subtract, *values[2:])
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    integer = types.intp
    return types.void(
        rows, centered, integer, integer, types.float32, integer, integer, integer, integer
    ), emit


@intrinsic(prefer_literal=True)
def norm_rows_backward(context, rows, centered, grad, x, count, means, rstds, out):  # type: ignore[no-untyped-def]
    """The gradients with respect to some rows x, as `bitexp.quant.norms.normalize_backward` has them.

    Args:
        rows, centered: as of `norm_rows`.
        grad, x, count: addresses of rows of `count` floats.
        means, rstds: of each row; without `centered` there are no means.
        out: where they go, one after the other; it may be `grad`.
    """
    number, subtract = rows.literal_value, centered.literal_value == 1

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        emit_norms_backward(b, number, subtract, *values[2:])
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(rows, centered, *(types.intp,) * 6), emit


def emit_norms_backward(
    b: Builder, rows: int, subtract: bool, grad: Value, x: Value, count: Value, means: Value, rstds: Value,
    out: Value,
) -> None:  # fmt: skip
    """The body of `norm_rows_backward`."""
    share, zero = share_of(b, count), ir.Constant(F32, 0.0)
    gs, xs, outs = (row_addresses(b, start, count, rows) for start in (grad, x, out))
    centers = [spread(b, load(b, means, F32, 4 * i) if subtract else zero, FLOATS) for i in range(rows)]
    factors = [spread(b, load(b, rstds, F32, 4 * i), FLOATS) for i in range(rows)]

    def normed(i: int, value: Value) -> Value:
        return b.fmul(b.fsub(value, centers[i]), factors[i])

    def product(i: int) -> Callable[[Value, Value], Value]:
        return lambda g, value: b.fmul(g, normed(i, value))

    pairs = [[gs[i], xs[i]] for i in range(rows)]
    sums = emit_sums(b, pairs, count, [product(i) for i in range(rows)])
    slopes = [spread(b, b.fmul(value, share), FLOATS) for value in sums]
    plain = [spread(b, zero, FLOATS)] * rows
    if subtract:
        sums = emit_sums(b, [[g] for g in gs], count, [lambda g: g] * rows)
        plain = [spread(b, b.fmul(value, share), FLOATS) for value in sums]

    def result(i: int, g: Value, value: Value) -> Value:
        return b.fmul(b.fsub(b.fsub(g, plain[i]), b.fmul(normed(i, value), slopes[i])), factors[i])

    emit_map(b, [[gs[i], xs[i]] for i in range(rows)], outs, count, result)


def share_of(b: Builder, count: Value) -> Value:
    """1 / count, rounded to fp32 once."""
    return b.fptrunc(b.fdiv(ir.Constant(F64, 1.0), b.sitofp(count, F64)), F32)


def row_addresses(b: Builder, start: Value, stride: Value, rows: int) -> list[Value]:
    """Where rows begin that are `stride` floats from each other."""
    away = b.mul(stride, ir.Constant(I64, 4))
    return [b.add(start, b.mul(away, ir.Constant(I64, i))) for i in range(rows)]


def emit_map(
    b: Builder, sources: list[list[Value]], targets: list[Value], count: Value, function: Callable[..., Value]
) -> None:
    """Writes what `function` makes of a row's number and its vectors, `count` floats a row."""
    sixteen = ir.Constant(I64, 16)
    whole, rest = b.sdiv(count, sixteen), b.srem(count, sixteen)
    loop = Loop(b, whole)
    away = b.mul(loop.index, ir.Constant(I64, BYTES))
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        values = (load(b, b.add(a, away), FLOATS, 0, 4) for a in source)
        store(b, function(i, *values), b.add(target, away), 0, 4)
    loop.close()
    with b.if_then(b.icmp_signed(">", rest, ir.Constant(I64, 0))):
        away = b.mul(whole, ir.Constant(I64, BYTES))
        mask = b.icmp_signed("<", ir.Constant(LANES, list(range(16))), spread(b, b.trunc(rest, I32), LANES))
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            values = (masked(b, b.add(a, away), 0, mask) for a in source)
            place = at(b, target, FLOATS, away)
            value, align = function(i, *values), ir.Constant(I32, 4)
            call(b, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, place, align, mask)


def emit_norms(
    b: Builder, rows: int, subtract: bool, x: Value, count: Value, eps: Value, out: Value, stride: Value,
    means: Value, rstds: Value,
) -> None:  # fmt: skip
    """The body of `norm_rows`."""
    share, one = share_of(b, count), ir.Constant(F32, 1.0)
    sources = row_addresses(b, x, count, rows)
    centers: list[Value] = [ir.Constant(F32, 0.0)] * rows
    if subtract:
        sums = emit_sums(b, [[source] for source in sources], count, [lambda x: x] * rows)
        centers = [b.fmul(value, share) for value in sums]
    wide = [spread(b, center, FLOATS) for center in centers]

    def squared(center: Value) -> Callable[[Value], Value]:
        def term(x: Value) -> Value:
            away = b.fsub(x, center)
            return b.fmul(away, away)

        return term

    sums = emit_sums(b, [[source] for source in sources], count, [squared(center) for center in wide])
    roots = [call(b, "llvm.sqrt.f32", F32, b.fadd(b.fmul(value, share), eps)) for value in sums]
    slopes = [b.fdiv(one, root) for root in roots]
    for i in range(rows):
        if subtract:
            store(b, centers[i], means, 4 * i)
        store(b, slopes[i], rstds, 4 * i)
    factors = [spread(b, slope, FLOATS) for slope in slopes]
    targets = row_addresses(b, out, stride, rows)
    emit_map(
        b, [[source] for source in sources], targets, count,
        lambda i, value: b.fmul(b.fsub(value, wide[i]), factors[i]),
    )  # fmt: skip


def emit_sum(b: Builder, arrays: list[Value], count: Value, term: Callable[..., Value]) -> Value:
    """The sum over what `term` makes of vectors of the arrays, which are addresses of `count` floats."""
    return emit_sums(b, [arrays], count, [term])[0]


def emit_sums(
    b: Builder, rows: list[list[Value]], count: Value, terms: list[Callable[..., Value]]
) -> list[Value]:
    """Several such sums at once, each over arrays of its own."""
    size, total = ir.Constant(I64, 16 * VECTORS), len(rows)
    whole = b.sdiv(count, size)
    loop = Loop(b, whole, *[NOTHING] * (VECTORS * total))
    base = b.mul(loop.index, ir.Constant(I64, VECTORS * BYTES))
    sums = loop.close(
        *(
            b.fadd(
                loop.carried[VECTORS * i + n],
                terms[i](*(load(b, b.add(a, base), FLOATS, BYTES * n, 4) for a in rows[i])),
            )
            for i in range(total)
            for n in range(VECTORS)
        )
    )
    rest = b.srem(count, size)
    before = b.block
    with b.if_then(b.icmp_signed(">", rest, ir.Constant(I64, 0))):
        lanes = spread(b, b.trunc(rest, I32), LANES)
        base = b.mul(whole, ir.Constant(I64, VECTORS * BYTES))
        masks = [
            b.icmp_signed("<", ir.Constant(LANES, list(range(16 * n, 16 * n + 16))), lanes)
            for n in range(VECTORS)
        ]
        more = []
        for i in range(total):
            for n, mask in enumerate(masks):
                some = (masked(b, b.add(a, base), BYTES * n, mask) for a in rows[i])
                more.append(b.fadd(sums[VECTORS * i + n], b.select(mask, terms[i](*some), NOTHING)))
        inside = b.block
    results = []
    for one, other in zip(sums, more, strict=True):
        either = b.phi(one.type)
        either.add_incoming(one, before)
        either.add_incoming(other, inside)
        results.append(either)
    found = []
    for i in range(total):
        first, second, third, fourth = results[VECTORS * i : VECTORS * (i + 1)]
        vector = b.fadd(b.fadd(first, third), b.fadd(second, fourth))
        for half in (8, 4, 2, 1):
            vector = b.fadd(part(b, vector, 0, half), part(b, vector, half, half))
        found.append(b.extract_element(vector, ir.Constant(I32, 0)))
    return found


def masked(b: Builder, address: Value, offset: int, mask: Value) -> Value:
    """16 floats, of which only those that the mask names are read."""
    place, align = at(b, address, FLOATS, offset), ir.Constant(I32, 4)
    return call(b, "llvm.masked.load.v16f32.p0", FLOATS, place, align, mask, ir.Constant(FLOATS, [0.0] * 16))
