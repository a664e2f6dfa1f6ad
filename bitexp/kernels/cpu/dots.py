"""The sum of four products of bytes by every instruction set, as LLVM IR on vectors of 64 bytes.

    acc[i] += w[4i] x[4i] + ... + w[4i+3] x[4i+3]      acc 16 x int32, w 64 x uint8 (below 16), x 64 x int8

All else in these kernels is plain vector IR, which LLVM lowers on any machine; this is the part for which
it does not find the instruction by itself. Importing this module needs llvmlite, which numba brings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

Builder = Any
Value = Any

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, LANES, FLOATS = ir.VectorType(I8, 64), ir.VectorType(I32, 16), ir.VectorType(F32, 16)


def call(b: Builder, name: str, result: Any, *arguments: Value) -> Value:
    """Calls an intrinsic of LLVM."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(b.module.globals.get(name) or ir.Function(b.module, kind, name), arguments)


def splat(value: int, kind: Any) -> Value:
    """A constant vector of equal elements."""
    return ir.Constant(kind, [value] * kind.count)


def part(b: Builder, vector: Value, start: int, count: int) -> Value:
    """`vector[start : start + count]`."""
    lanes = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def joined(b: Builder, parts: list[Value]) -> Value:
    """Vectors of equal lengths, one behind the other."""
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        lanes = ir.Constant(ir.VectorType(I32, count), list(range(count)))
        parts = [b.shuffle_vector(*parts[i : i + 2], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


def in_parts(b: Builder, width: int, one: Callable[..., Value], acc: Value, w: Value, x: Value) -> Value:
    """`one(acc, w, x)` on vectors of `width` bytes."""
    pieces = []
    for start in range(0, 64, width):
        few = part(b, acc, start // 4, width // 4)
        pieces.append(one(few, part(b, w, start, width), part(b, x, start, width)))
    return joined(b, pieces)


Pairs = list[tuple[Value, Value]]
"""(weight codes, activation codes) whose products all go into the same sums; at most eight."""


def vnni512(b: Builder, acc: Value, pairs: Pairs) -> Value:
    """AVX512-VNNI: one instruction for 64 products."""
    for w, x in pairs:
        acc = call(b, "llvm.x86.avx512.vpdpbusd.512", LANES, acc, w, x)
    return acc


def avxvnni(b: Builder, acc: Value, pairs: Pairs) -> Value:
    """AVX-VNNI: one instruction for 32 products."""

    def one(few: Value, w: Value, x: Value) -> Value:
        return call(b, "llvm.x86.avx512.vpdpbusd.256", few.type, few, w, x)

    for w, x in pairs:
        acc = in_parts(b, 32, one, acc, w, x)
    return acc


def avx2(b: Builder, acc: Value, pairs: Pairs) -> Value:
    """AVX2: products of pairs in int16, which hold 8 x 2 x 15 x 128, before they are widened."""
    words, few = ir.VectorType(I16, 16), ir.VectorType(I32, 8)
    halves = []
    for start in (0, 32):
        total: Value = splat(0, words)
        for w, x in pairs:
            two = [part(b, w, start, 32), part(b, x, start, 32)]
            total = b.add(total, call(b, "llvm.x86.avx2.pmadd.ub.sw", words, *two))
        wide = call(b, "llvm.x86.avx2.pmadd.wd", few, total, splat(1, words))
        halves.append(b.add(part(b, acc, start // 4, 8), wide))
    return joined(b, halves)


def neon(b: Builder, acc: Value, pairs: Pairs) -> Value:
    """The dot products of ARMv8.2: one instruction for 16 products."""

    def one(few: Value, w: Value, x: Value) -> Value:
        return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", few.type, few, w, x)

    for w, x in pairs:
        acc = in_parts(b, 16, one, acc, w, x)
    return acc


def generic(b: Builder, acc: Value, pairs: Pairs) -> Value:
    """Any machine: products and their sums of four in int16, added in int32."""
    words = ir.VectorType(I16, 64)
    for w, x in pairs:
        products = b.mul(b.zext(w, words), b.sext(x, words))
        total: Value = splat(0, ir.VectorType(I16, 16))
        for k in range(4):
            lanes = ir.Constant(LANES, list(range(k, 64, 4)))
            total = b.add(total, b.shuffle_vector(products, ir.Constant(words, ir.Undefined), lanes))
        acc = b.add(acc, b.sext(total, LANES))
    return acc


@dataclass(frozen=True)
class Isa:
    """An instruction set: what the processor must have, its sum, and the tiles that fit its registers.

    `tiles` are (tokens, panels of 16 outputs) for three numbers of tokens, the largest first; a single
    token always takes all four panels.
    """

    features: tuple[str, ...]
    dots: Callable[[Builder, Value, Pairs], Value]
    tiles: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    wide: bool = False
    """Takes all 256 values of a byte w, without overflow."""
    paired: bool = False
    """Takes several pairs at once in less time, having no single instruction for one."""


ISAS = {
    "vnni512": Isa(("avx512vnni", "avx512bw", "avx512vl"), vnni512, ((5, 4), (4, 4), (2, 4)), True),
    "avxvnni": Isa(("avxvnni",), avxvnni, ((4, 1), (3, 1), (2, 2)), True),
    "avx2": Isa(("avx2",), avx2, ((4, 1), (3, 1), (2, 1)), paired=True),
    "neon": Isa(("dotprod",), neon, ((4, 1), (3, 1), (2, 2))),
    "generic": Isa((), generic, ((4, 1), (3, 1), (2, 1)), paired=True),
}
"""By name, the fastest first."""


def supported() -> list[str]:
    """The instruction sets that numba compiles for here, the fastest first.

    These are the processor's, unless `NUMBA_CPU_NAME` or `NUMBA_CPU_FEATURES` say otherwise.
    """
    from numba.core import codegen, config

    text = config.CPU_FEATURES
    features = codegen.get_host_cpu_features() if text is None else text
    have = {f.removeprefix("+") for f in features.split(",") if f.startswith("+")}
    return [name for name, isa in ISAS.items() if have.issuperset(isa.features)]
