"""A whole network in one compiled call: a list of steps over buffers in memory, carried out one by one.

A step is a record of `STEP`: an operation of `OPERATIONS`, addresses of what it reads and writes, and sizes.
A quantized layer is the same machine code that the kernel calls by itself, so it gives the same bits; what
stands between the layers is in `ops.py`. Importing this module needs numba.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from bitexp.kernels.cpu import ops
from bitexp.kernels.cpu.addresses import floats, matrix, part, pointer
from bitexp.kernels.cpu.dots import Builder, Value
from bitexp.kernels.cpu.jit import compiled

OPERATIONS = (
    "embed", "layer", "dense", "norm", "activate", "gated", "add",
    "attend", "attend_all", "gather", "prepend", "mean",
)  # fmt: skip
(EMBED, LAYER, DENSE, NORM, ACTIVATE, GATED, ADD, ATTEND, ATTEND_ALL, GATHER, PREPEND, MEAN) = range(
    len(OPERATIONS)
)

STEP = np.dtype(
    [
        *((name, np.int64) for name in ("operation", "rows")),  # rows 0: as many as the call has
        *((name, np.int64) for name in ("x", "y", "z", "out")),  # addresses of fp32 [rows, features]
        *((name, np.int64) for name in ("weight", "scale", "bias", "index")),  # addresses; 0: there is none
        *((name, np.int64) for name in ("inputs", "outputs")),  # features of x and of out
        *((name, np.int64) for name in ("code", "absmax", "scaled", "streams")),  # of a quantized layer
        *((name, np.int64) for name in ("heads", "kv_heads", "size", "block", "context")),  # of attention
        ("kind", np.int64),  # of a norm (1 subtracts the mean) or an activation
        ("eps", np.float32),
    ],
    align=True,
)
"""What a step says. Fields that its operation does not read are 0."""


@intrinsic
def call_layer(context, code, w, scale, inputs, outputs, qmax, bias, scaled, x, y, scratch, tokens, streams):  # type: ignore[no-untyped-def]
    """Calls the machine code of a layer (`bitexp.kernels.cpu.layer.address`) for all tokens and streams."""
    kinds = (types.int64,) * 15

    def emit(context: Any, b: Builder, __: Any, values: list[Value]) -> Value:
        convention, first = context.call_conv, ir.Constant(values[0].type, 0)
        kind = convention.get_function_type(types.none, kinds)
        function = b.inttoptr(values[0], kind.as_pointer())
        none = first  # a norm is a step of its own, which layers share
        arguments = [*values[1:8], none, *values[8:11], first, values[11], first, values[12]]
        convention.call_function(b, function, types.none, kinds, arguments)
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 13), emit


@part
def embed(step, ids, rows):  # type: ignore[no-untyped-def]
    """Rows of a table."""
    width = step.outputs
    for r in range(rows):
        source, target = (
            floats(step.weight + 4 * width * ids[r], width),
            floats(step.out + 4 * width * r, width),
        )
        for j in range(width):
            target[j] = source[j]


@part
def attend(step, rows, positions, caches, rooms, scratch):  # type: ignore[no-untyped-def]
    """Each row is the next token of a text: its keys and values join the cache, its queries see them all."""
    size, heads, kv_heads, context = step.size, step.heads, step.kv_heads, step.context
    group = heads // kv_heads
    for r in range(rows):
        place, per_head = positions[r], 4 * rooms[r] * size
        per_part = kv_heads * per_head
        cos = floats(step.weight + 4 * size * place, size)
        sin = floats(step.weight + 4 * size * (context + place), size)
        keys_at = caches[r] + 2 * step.block * per_part
        for h in range(kv_heads):
            start = keys_at + h * per_head
            given = 4 * size * (r * kv_heads + h)
            ops.rotated(floats(step.y + given, size), cos, sin, floats(start + 4 * size * place, size))
            source, target = floats(step.z + given, size), floats(start + per_part + 4 * size * place, size)
            for j in range(size):
                target[j] = source[j]
        query, scores = floats(scratch, size), floats(scratch + 4 * size, place + 1)
        for h in range(heads):
            given = 4 * size * (r * heads + h)
            start = keys_at + h // group * per_head
            ops.rotated(floats(step.x + given, size), cos, sin, query)
            keys, values = matrix(start, place + 1, size), matrix(start + per_part, place + 1, size)
            ops.mixed(query, keys, values, scores, floats(step.out + given, size))


@part
def attend_all(step, scratch):  # type: ignore[no-untyped-def]
    """Every row sees every row; x is `[rows, 3, heads, size]`."""
    rows, heads, size = step.rows, step.heads, step.size
    width = heads * size
    x, out = matrix(step.x, rows, 3 * width), matrix(step.out, rows, width)
    keys, values = matrix(scratch, size, rows), matrix(scratch + 4 * rows * size, rows, size)
    scores = floats(scratch + 8 * rows * size, rows)
    for h in range(heads):
        first = h * size
        for r in range(rows):
            for j in range(size):
                keys[j, r] = x[r, width + first + j]
                values[r, j] = x[r, 2 * width + first + j]
        for r in range(rows):
            ops.mixed_columns(x[r, first : first + size], keys, values, scores, out[r, first : first + size])


@part
def play(steps, rows, ids, positions, caches, rooms, scratch):  # type: ignore[no-untyped-def]
    """All steps once."""
    for i in range(steps.size):
        step = steps[i]
        m = step.rows if step.rows > 0 else rows
        operation, inputs, outputs = step.operation, step.inputs, step.outputs
        if operation == LAYER:
            call_layer(step.code, step.weight, step.scale, inputs, outputs, step.absmax, step.bias,
                       step.scaled, step.x, step.out, scratch, m, step.streams)  # fmt: skip
        elif operation == NORM:
            weight = floats(step.weight, inputs if step.weight else 0)
            bias = floats(step.bias, inputs if step.bias else 0)
            for r in range(m):
                row, target = (
                    floats(step.x + 4 * inputs * r, inputs),
                    floats(step.out + 4 * inputs * r, inputs),
                )
                ops.norm(row, step.kind > 0, step.eps, weight, bias, target)
        elif operation == ACTIVATE:
            ops.activate(step.kind, floats(step.x, m * inputs), floats(step.out, m * inputs))
        elif operation == GATED:
            gate, up = floats(step.x, m * inputs), floats(step.y, m * inputs)
            ops.gated(step.kind, gate, up, floats(step.out, m * inputs))
        elif operation == ADD:
            first, second, target = (
                floats(step.x, m * inputs), floats(step.y, m * inputs), floats(step.out, m * inputs),
            )  # fmt: skip
            for j in range(target.size):
                target[j] = first[j] + second[j]
        elif operation == ATTEND:
            attend(step, m, positions, caches, rooms, scratch)
        elif operation == DENSE:
            bias = floats(step.bias, outputs if step.bias else 0)
            x, out = matrix(step.x, m, inputs), matrix(step.out, m, outputs)
            if step.scale:
                codes = carray(pointer(step.weight), (outputs, inputs), np.int8)
                ops.dense_int8(x, codes, floats(step.scale, outputs), bias, out)
            else:
                ops.dense(x, matrix(step.weight, outputs, inputs), bias, out)
        elif operation == EMBED:
            embed(step, ids, m)
        elif operation == ATTEND_ALL:
            attend_all(step, scratch)
        elif operation == GATHER:
            source, target = floats(step.x, inputs), floats(step.out, m * outputs)
            index = carray(pointer(step.index), m * outputs, np.int64)
            for j in range(target.size):
                target[j] = source[index[j]]
        elif operation == PREPEND:
            front, source = floats(step.weight, inputs), floats(step.x, (m - 1) * inputs)
            target = floats(step.out, m * inputs)
            for j in range(inputs):
                target[j] = front[j]
            for j in range(source.size):
                target[inputs + j] = source[j]
        elif operation == MEAN:
            table, target = matrix(step.x, m, inputs), floats(step.out, inputs)
            for j in range(inputs):
                target[j] = 0
            for r in range(m):
                for j in range(inputs):
                    target[j] += table[r, j]
            for j in range(inputs):
                target[j] /= np.float32(m)


@functools.cache
def program() -> Callable[..., None]:
    """The compiled function itself; compiles it at once. Its arguments, in order, all of them integers:

    steps, count      address of records of `STEP`, and how many they are
    texts, most       address of int64 `[4, most]`: of each text the next token, its position, the address
                      of its cache `[layers, 2, kv_heads, room, size]`, and the room in it
    scratch           address of memory for one call at a time
    rows              how many texts there are
    """
    stamp = fingerprint()

    def run(steps_at, count, texts, most, scratch, logits, features, chosen, rows, tokens):  # type: ignore[no-untyped-def]
        _ = stamp  # in the closure, so that it is in the key of numba's cache
        steps = carray(pointer(steps_at), count, STEP)
        of_texts = carray(pointer(texts), (4, most), np.int64)
        ids, positions, caches, rooms = of_texts[0], of_texts[1], of_texts[2], of_texts[3]
        for turn in range(tokens):
            play(steps, rows, ids, positions, caches, rooms, scratch)
            if chosen:
                for r in range(rows):
                    ids[r] = ops.likeliest(floats(logits + 4 * features * r, features))
                    carray(pointer(chosen + 8 * most * turn), most, np.int64)[r] = ids[r]
                    positions[r] += 1

    function, nothing = compiled(run), (0,) * 10
    function(*nothing)
    entry: Callable[..., None] = function.get_overload((types.int64,) * len(nothing))  # type: ignore[attr-defined]
    return entry


def fingerprint() -> str:
    """Of the modules whose code the program contains: numba's cache looks at one module only."""
    names = ("attention.py", "ops.py", "program.py")
    sources = [Path(__file__).with_name(name).read_bytes() for name in names]
    return hashlib.sha256(b"".join(sources)).hexdigest()
