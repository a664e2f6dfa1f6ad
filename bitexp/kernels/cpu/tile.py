"""Two pieces of LLVM IR that numba's functions call: a tile of the product, and the codes of a token.

    tile      y[r, n] = ((mult * sum_k w[n, k] q[r, k] - low * sum_k q[r, k]) + pre[n])
                        * (x_scale[r] * scale[n]) + post[n]           for some tokens r and 16 to 64 outputs n
    quantize  int8 codes, their sum and the scale of one token

Everything is addressed by integers. Bytes lie as `bitexp.kernels.cpu.layout` says.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bitexp.kernels.cpu.dots import (
    BYTES,
    F32,
    FLOATS,
    I8,
    I32,
    I64,
    ISAS,
    LANES,
    Builder,
    Isa,
    Pairs,
    Value,
    call,
    splat,
)

NAMES = list(ISAS)
MAGIC = 12582912.0
"""1.5 * 2^23: a float in -2^22 .. 2^22 that is added to it is rounded to an integer, half to even."""
AHEAD = 4096
"""How many bytes ahead of their use packed codes are asked for. Of the distances measured, from 1 to 64 KiB,
this one is the best by 1 to 15 % of a token's time."""


def at(b: Builder, address: Value, kind: Any, offset: Value | int = 0) -> Value:
    """A pointer to `kind` some bytes behind an address."""
    if not (isinstance(offset, int) and offset == 0):
        address = b.add(address, ir.Constant(I64, offset) if isinstance(offset, int) else offset)
    return b.inttoptr(address, kind.as_pointer())


def load(b: Builder, address: Value, kind: Any, offset: Value | int = 0, align: int = 1) -> Value:
    value = b.load(at(b, address, kind, offset))
    value.align = align
    return value


def store(b: Builder, value: Value, address: Value, offset: Value | int = 0, align: int = 1) -> None:
    b.store(value, at(b, address, value.type, offset)).align = align


def spread(b: Builder, value: Value, kind: Any) -> Value:
    """A vector with the value in each element."""
    empty = ir.Constant(kind, ir.Undefined)
    first = b.insert_element(empty, value, ir.Constant(I32, 0))
    return b.shuffle_vector(first, empty, splat(0, ir.VectorType(I32, kind.count)))


class Loop:
    """`for i in range(count)` around what is emitted inside, with values carried from turn to turn."""

    def __init__(self, b: Builder, count: Value, *starts: Value) -> None:
        self.b, self.count = b, count
        before = b.block
        self.body, self.end = b.append_basic_block("loop"), b.append_basic_block("end")
        empty = b.icmp_signed("<=", count, ir.Constant(I64, 0))
        b.cbranch(empty, self.end, self.body)
        b.position_at_end(self.body)
        self.index = b.phi(I64)
        self.carried = [b.phi(start.type) for start in starts]
        for phi, start in zip([self.index, *self.carried], [ir.Constant(I64, 0), *starts], strict=True):
            phi.add_incoming(start, before)
        self._before, self._starts = before, starts

    def close(self, *values: Value) -> list[Value]:
        """Ends the body with the values for the next turn; gives those after the last one."""
        b = self.b
        following = b.add(self.index, ir.Constant(I64, 1))
        for phi, value in zip([self.index, *self.carried], [following, *values], strict=True):
            phi.add_incoming(value, b.block)
        last = b.block
        b.cbranch(b.icmp_signed("<", following, self.count), self.body, self.end)
        b.position_at_end(self.end)
        results = []
        for start, value in zip(self._starts, values, strict=True):
            result = b.phi(value.type)
            result.add_incoming(start, self._before)
            result.add_incoming(value, last)
            results.append(result)
        return results


@intrinsic(prefer_literal=True)
def tile(context, isa, bits, tokens, panels, w, blocks, q, ldq, sums, x_scales, scale, pre, post, y, ldy):  # type: ignore[no-untyped-def]
    """`tokens` x `16 * panels` outputs.

    Args:
        isa: number of the instruction set in `NAMES`; it, bits, tokens and panels are constants.
        w, blocks: packed codes of a stream at its first panel, and how many blocks it has.
        q, ldq: int8 codes of the first token, and bytes from token to token.
        sums, x_scales: int32 and float32, one per token.
        scale, pre, post: float32, one per output, at the first panel's; -0.0 is what adds nothing.
        y, ldy: where float32 outputs go, and bytes from token to token.
    """
    one, shape = ISAS[NAMES[isa.literal_value]], [n.literal_value for n in (bits, tokens, panels)]

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        emit_tile(b, one, *shape, *values[4:])
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(isa, bits, tokens, panels, *(types.intp,) * 11), emit


def emit_tile(
    b: Builder, isa: Isa, bits: int, rows: int, panels: int,
    w: Value, blocks: Value, q: Value, ldq: Value, sums: Value, x_scales: Value,
    scale: Value, pre: Value, post: Value, y: Value, ldy: Value,
) -> None:  # fmt: skip
    """The body of `tile`.

    A single token leaves registers free, so its groups have sums of their own (`chains`). Where all values of
    a byte can be multiplied, up to four groups then stay at their bits instead of being shifted down, and it
    is the sums that are shifted in the end: of `(code << s) * x` no bit below s is set.

    Four of them go panel by panel, four masks and then four products: so all units of a Zen 4 are busy.
    Otherwise codes and activations come as late as they can. What is there before waits in registers, and a
    tile that needs more than there are keeps the rest on the stack, where half of it lies across two lines.
    """
    groups = 8 // bits
    unshifted = min(groups, 4) if isa.wide and rows == 1 else 1
    chains = 2 if unshifted == 1 and rows * panels <= 8 else unshifted  # so that no sum waits for another
    chains = min(chains, groups)
    zero = splat(0, LANES)
    loop = Loop(b, blocks, *[zero] * (rows * panels * chains))
    acc = list(loop.carried)
    stream = b.add(w, b.mul(loop.index, ir.Constant(I64, 256)))
    tokens = [b.add(q, b.mul(ldq, ir.Constant(I64, i))) for i in range(rows)]
    place = b.mul(loop.index, ir.Constant(I64, 4 * groups))
    for j in range(panels):
        ahead = at(b, stream, I8, AHEAD + 64 * j)
        hints = [ir.Constant(I32, n) for n in (0, 3, 1)]  # to read, to keep, data
        call(b, "llvm.prefetch.p0", ir.VoidType(), ahead, *hints)
    batches = (
        [range(c, groups, chains) for c in range(chains)] if isa.paired else [[g] for g in range(groups)]
    )

    def codes(raw: Value, g: int) -> Value:
        stay = g % unshifted
        shift = bits * (g - stay)
        shifted = b.lshr(raw, splat(shift, LANES)) if shift else raw
        return b.and_(b.bitcast(shifted, BYTES), splat((2**bits - 1) << bits * stay, BYTES))

    def activations(i: int, g: int) -> Value:
        four = load(b, tokens[i], I32, b.add(place, ir.Constant(I64, 4 * g)))
        return b.bitcast(spread(b, four, LANES), BYTES)

    def add(first: int, i: int, j: int, pairs: Pairs) -> None:
        n = (first % chains * rows + i) * panels + j
        acc[n] = isa.dots(b, acc[n], pairs)

    raw = [load(b, stream, LANES, 64 * j) for j in range(panels)]
    if unshifted == groups == 4:
        x = [activations(0, g) for g in range(groups)]
        for j in range(panels):
            of_panel = [codes(raw[j], g) for g in range(groups)]
            for g in range(groups):
                add(g, 0, j, [(of_panel[g], x[g])])
    else:
        for batch in batches:
            w_at = {(g, j): codes(raw[j], g) for g in batch for j in range(panels)}
            for i in range(rows):
                of_token = {g: activations(i, g) for g in batch}
                for j in range(panels):
                    add(batch[0], i, j, [(w_at[g, j], of_token[g]) for g in batch])
    total = loop.close(*acc)
    one = rows * panels
    for c in range(1, chains):
        for n in range(one):
            more = total[c * one + n]
            if unshifted > 1:
                more = b.ashr(more, splat(bits * c, LANES))
            total[n] = b.add(total[n], more)
    size = ir.Constant(I64, 4)
    for i in range(rows):
        token = b.mul(size, ir.Constant(I64, i))
        low = spread(b, load(b, sums, I32, token), LANES)
        x_scale = spread(b, load(b, x_scales, F32, token), FLOATS)
        if bits > 2:
            low = b.mul(low, splat(2 ** (bits - 1), LANES))
        line = b.add(y, b.mul(ldy, ir.Constant(I64, i)))
        for j in range(panels):
            n = i * panels + j
            whole = total[n]
            if bits == 1:
                whole = b.shl(whole, splat(1, LANES))
            value = b.sitofp(b.sub(whole, low), FLOATS)
            value = b.fadd(value, load(b, pre, FLOATS, 64 * j))
            value = b.fmul(value, b.fmul(x_scale, load(b, scale, FLOATS, 64 * j)))
            store(b, b.fadd(value, load(b, post, FLOATS, 64 * j)), line, 64 * j)


@intrinsic
def quantize(context, x, count, q, qmax, sum_at, scale_at):  # type: ignore[no-untyped-def]
    """Codes of `count` floats at x as `bitexp.quant.activations.int8.absmax_codes` has them.

    Writes whole sixteens of codes, zero behind the last; absmax below 1e-5 counts as 1e-5.
    """

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        emit_quantize(b, *values)
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(*(types.intp,) * 3, types.float32, *(types.intp,) * 2), emit


def emit_quantize(
    b: Builder, x: Value, count: Value, q: Value, qmax: Value, sum_at: Value, scale_at: Value
) -> None:
    """The body of `quantize`."""
    sixteen, four = ir.Constant(I64, 16), ir.Constant(I64, 4)
    whole, rest = b.sdiv(count, sixteen), b.srem(count, sixteen)
    lanes = ir.Constant(LANES, list(range(16)))
    mask = b.icmp_signed("<", lanes, spread(b, b.trunc(rest, I32), LANES))
    tail_at = b.mul(whole, ir.Constant(I64, 64))
    nothing = ir.Constant(FLOATS, [0.0] * 16)

    def tail() -> Value:
        source = at(b, x, FLOATS, tail_at)
        align = ir.Constant(I32, 4)
        return call(b, "llvm.masked.load.v16f32.p0", FLOATS, source, align, mask, nothing)

    # The largest magnitude as an integer: floats without sign are ordered as integers, NaN above all.
    def magnitude(v: Value) -> Value:
        return b.and_(b.bitcast(v, LANES), splat(0x7FFFFFFF, LANES))

    def larger(u: Value, v: Value) -> Value:
        return b.select(b.icmp_signed(">", u, v), u, v)

    pairs = b.sdiv(whole, ir.Constant(I64, 4))
    floor = ir.Constant(I32, 0x3727C5AC)  # 1e-5 as float32
    loop = Loop(b, pairs, *[spread(b, floor, LANES)] * 4)
    base = b.mul(loop.index, ir.Constant(I64, 256))
    tops = loop.close(
        *(
            larger(loop.carried[i], magnitude(load(b, x, FLOATS, b.add(base, ir.Constant(I64, 64 * i)), 4)))
            for i in range(4)
        )
    )
    done = b.mul(pairs, four)
    loop = Loop(b, b.sub(whole, done), tops[0])
    base = b.mul(b.add(loop.index, done), ir.Constant(I64, 64))
    (first,) = loop.close(larger(loop.carried[0], magnitude(load(b, x, FLOATS, base, 4))))
    top = larger(larger(first, tops[1]), larger(tops[2], tops[3]))
    top = larger(top, magnitude(tail()))
    absmax = b.bitcast(call(b, "llvm.vector.reduce.smax.v16i32", I32, top), F32)
    store(b, b.fdiv(absmax, qmax), scale_at)
    factor = b.fmul(b.fdiv(ir.Constant(F32, 1.0), absmax), qmax)
    factor = spread(b, factor, FLOATS)
    limit, magic = ir.Constant(FLOATS, [127.0] * 16), ir.Constant(FLOATS, [MAGIC] * 16)

    def codes(v: Value) -> Value:
        v = b.fmul(v, factor)
        v = b.select(b.fcmp_ordered(">", v, limit), limit, v)
        return b.trunc(b.bitcast(b.fadd(v, magic), LANES), ir.VectorType(I8, 16))

    loop = Loop(b, whole, splat(0, LANES))
    some = codes(load(b, x, FLOATS, b.mul(loop.index, ir.Constant(I64, 64)), 4))
    store(b, some, q, b.mul(loop.index, sixteen))
    (total,) = loop.close(b.add(loop.carried[0], b.sext(some, LANES)))
    last = codes(tail())
    with b.if_then(b.icmp_signed(">", rest, ir.Constant(I64, 0))):
        store(b, last, q, b.mul(whole, sixteen))
    total = b.add(total, b.sext(last, LANES))
    store(b, call(b, "llvm.vector.reduce.add.v16i32", I32, total), sum_at)


@intrinsic
def clear(context, target, size):  # type: ignore[no-untyped-def]
    """Makes bytes at an address zero."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        zero, ordinary = ir.Constant(I8, 0), ir.Constant(ir.IntType(1), 0)
        call(b, "llvm.memset.p0.i64", ir.VoidType(), at(b, values[0], I8), zero, values[1], ordinary)
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(types.intp, types.intp), emit


@intrinsic
def copy(context, source, target, size):  # type: ignore[no-untyped-def]
    """Copies bytes from address to address."""

    def emit(_: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        start, end, count = values
        pointers = at(b, end, I8), at(b, start, I8)
        call(b, "llvm.memcpy.p0.p0.i64", ir.VoidType(), *pointers, count, ir.Constant(ir.IntType(1), 0))
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return types.void(types.intp, types.intp, types.intp), emit
