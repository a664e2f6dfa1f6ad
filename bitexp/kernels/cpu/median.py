"""The exact median of magnitudes at about the cost of their mean: radix selection on the bits of floats.

Magnitudes of IEEE floats are ordered as their bits are. A sample brackets the median; one pass over the
weights counts those below and moves the few within into a buffer; three histograms at most, of 2048 bins
each, on ever fewer of them, then name its bits. Where the bracket misses (weights in an unlucky order), the
histograms run over all weights. Importing this module needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bitexp.kernels.cpu.addresses import floats, integers
from bitexp.kernels.cpu.jit import compiled, of_integers
from bitexp.kernels.cpu.norm_quant import FLOOR, round_row

Array = Any

MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
NAN = np.int32(0x7FC00000)
BINS = 2048
SAMPLE = 4096
SPREAD = 4 * 32
"""Four standard deviations of the rank, in the sample, of the median."""
BLOCK = 4096
"""Weights that are counted and then looked through again: they stay in the first-level cache."""
LANES = 16


@intrinsic
def keep_lanes(context, source, target, low, width):  # type: ignore[no-untyped-def]
    """Of 16 floats at an address, moves the bits of magnitudes in low..low+width to another; how many."""
    signature = types.int64(types.intp, types.intp, types.int32, types.int32)
    lane, vector = ir.IntType(32), ir.VectorType(ir.IntType(32), LANES)

    def splat(b: Any, value: Any) -> Any:
        first = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(lane, 0))
        return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0] * LANES))

    def call(b: Any, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return b.call(b.module.globals.get(name) or ir.Function(b.module, kind, name), arguments)

    def emit(_: Any, b: Any, __: Any, values: list[Any]) -> Any:
        source, target, low, width = values
        floats = b.load(b.inttoptr(source, vector.as_pointer()), align=4)
        bits = b.and_(floats, ir.Constant(vector, [int(MAGNITUDE)] * LANES))
        inside = b.icmp_unsigned("<=", b.sub(bits, splat(b, low)), splat(b, width))
        name = f"llvm.experimental.vector.compress.v{LANES}i32"
        kept = call(b, name, vector, bits, inside, ir.Constant(vector, [0] * LANES))
        b.store(kept, b.inttoptr(target, vector.as_pointer()), align=4)
        mask = b.bitcast(inside, ir.IntType(LANES))
        return b.zext(call(b, f"llvm.ctpop.i{LANES}", mask.type, mask), ir.IntType(64))

    return signature, emit


@compiled
def count(bits: Array, low: Any) -> Any:
    """How many magnitudes are below `low`, and whether one is NaN."""
    below, nan = np.int32(0), np.int32(0)
    for i in range(bits.size):
        magnitude = np.int32(bits[i] & MAGNITUDE)
        below += np.int32(magnitude < low)
        nan |= np.int32(magnitude > INFINITY)
    return below, nan


@compiled
def keep(bits: Array, low: Any, high: Any, out: Array) -> Any:
    """Moves the magnitudes in low..high to `out`, which has 16 places to spare or is `bits` itself."""
    source, target, width = bits.ctypes.data, out.ctypes.data, np.int32(high - low)
    whole, kept = bits.size // LANES * LANES, 0
    for i in range(0, whole, LANES):
        kept += keep_lanes(source + 4 * i, target + 4 * kept, low, width)
    for i in range(whole, bits.size):
        magnitude = bits[i] & MAGNITUDE
        out[kept] = magnitude
        kept += (magnitude >= low) & (magnitude <= high)
    return kept


@compiled
def ranked(bits: Array, rank: Any, low: Any, high: Any, out: Array) -> Any:
    """The magnitude of a rank among those in low..high, which all are; `out` is overwritten."""
    bins = np.empty(BINS, np.int32)
    while True:
        shift = 0
        while (high - low) >> shift >= BINS:
            shift += 1
        bins[:] = 0
        for i in range(bits.size):
            bins[((bits[i] & MAGNITUDE) - low) >> shift] += 1
        bin = 0
        while rank >= bins[bin]:
            rank -= bins[bin]
            bin += 1
        low = np.int32(low + (bin << shift))
        if shift == 0:
            return low
        high = np.int32(low + (1 << shift) - 1)
        bits = out[: keep(bits, low, high, out)]


@compiled
def bracket(bits: Array) -> Any:
    """Magnitudes that most likely enclose the median, from a sample at equal distances."""
    bins = np.zeros(BINS << 1, np.int32)
    distance = bits.size // SAMPLE
    for i in range(SAMPLE):
        bins[(bits[i * distance] & MAGNITUDE) >> 19] += 1
    first, seen = 0, bins[0]
    while seen <= SAMPLE // 2 - SPREAD:
        first += 1
        seen += bins[first]
    last = first
    while seen <= SAMPLE // 2 + SPREAD:
        last += 1
        seen += bins[last]
    return np.int32(first << 19), np.int32(((last + 1) << 19) - 1)


@compiled
def median(bits: Array) -> Any:
    """The bits of the lower median of |w|, from the bits of the w; those of a NaN where there is one."""
    rank, room = (bits.size - 1) // 2, bits.size
    low, high = np.int32(0), INFINITY
    if bits.size >= 4 * SAMPLE:
        low, high = bracket(bits)
        room = bits.size // 8
    out = np.empty(room + BLOCK + LANES, np.int32)
    below, kept = 0, 0
    for start in range(0, bits.size, BLOCK):
        block = bits[start : start + BLOCK]
        fewer, nan = count(block, low)
        if nan:
            return NAN
        below += fewer
        if kept <= room:
            kept += keep(block, low, high, out[kept:])
    if kept <= room and below <= rank < below + kept:
        return ranked(out[:kept], rank - below, low, high, out)
    return ranked(bits, rank, np.int32(0), INFINITY, np.empty(bits.size + LANES, np.int32))


@of_integers
def medians(rows: int, out: int, features: int, count: int) -> None:
    """`median` of each of `count` rows of floats, as a float."""
    results = integers(out, count)
    for i in range(count):
        results[i] = median(integers(rows + 4 * features * i, features))


@of_integers
def codes_by_medians(
    rows: int, low: int, high: int, codes: int, scale: int, features: int, count: int
) -> None:
    """Codes of `count` rows, rounded, and their scales median|w|."""
    bits, scales = integers(scale, count), floats(scale, count)
    for i in range(count):
        bits[i] = median(integers(rows + 4 * features * i, features))
        if scales[i] < FLOOR:
            scales[i] = FLOOR
        round_row(rows + 4 * features * i, scales[i], low, high, codes + features * i, features)
