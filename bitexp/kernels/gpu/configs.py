"""Which tile for which shape: a table, so that a first call is as fast as the next and runs repeat."""

from __future__ import annotations

from typing import NamedTuple

LARGE = 160 * 1024
"""Bytes of shared memory in data center GPUs, against about 100 KiB in others."""


class Gemv(NamedTuple):
    """A program's outputs, words of weights per step, activations per pass; warps and pipeline stages."""

    outputs: int
    words: int
    block: int
    warps: int
    stages: int


class Tile(NamedTuple):
    """A program's tokens, outputs and inputs per step; warps, stages, and programs that share the inputs."""

    tokens: int
    outputs: int
    inputs: int
    warps: int
    stages: int
    split: int = 1


def gemv_tile(rows: int, outputs: int, words: int) -> Gemv:
    """For one to four tokens: few outputs per program and whole rows at once, to have much on its way."""
    width = power_of_two(words, 32, 256)
    warps = 8 if width > 128 else 4
    block = power_of_two(16 * words, 512, 8192)
    return Gemv(outputs=16 if rows == 1 else 8, words=width, block=block, warps=warps, stages=1)


def packed_tile(rows: int, outputs: int, padded: int, bits: int, processors: int, shared: int) -> Tile:
    """For packed weights. The step is the largest that divides the padded inputs."""
    run = 128 // bits
    step = next(k for k in (256, 128, 64) if k % run == 0 and padded % k == 0)
    large = shared >= LARGE
    if rows <= 64:
        tokens = 16 if rows <= 16 else 32 if rows <= 32 else 64
        tile = Tile(tokens, 64, step, warps=4, stages=3 if large else 2)
    elif rows >= 256 and large:
        tile = Tile(128, 128, step, warps=8, stages=3)
    else:
        tile = Tile(64, 128, step if bits == 1 else min(step, 128), warps=4, stages=3)
    programs = -(-outputs // tile.outputs) * -(-rows // tile.tokens)
    at_once = processors * (2 if rows <= 64 else 1)
    split = max(1, min(at_once // programs, padded // tile.inputs // 2, 16))
    return tile._replace(split=split)


def int8_tile(rows: int, outputs: int, inputs: int, shared: int) -> Tile:
    """For int8 codes times int8 codes."""
    if rows <= 64 or outputs <= 64 or inputs <= 64:
        return Tile(64, 64, 64, warps=4, stages=3)
    if shared >= LARGE:
        return Tile(128, 128, 128, warps=8, stages=4)
    return Tile(128, 128, 64, warps=8, stages=3)


def power_of_two(number: int, least: int, most: int) -> int:
    """The next power of two, within bounds that are such."""
    return min(max(1 << (number - 1).bit_length(), least), most)
