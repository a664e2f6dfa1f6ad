"""One ternary layer in every implementation that is installed, from fp32 activations to fp32 outputs.

    python -m bitexp bench layers
    python -m bitexp bench layers --shapes 1024x4096 --tokens 1 --cache cold --output tables

`cold` goes through copies of the weights that fill 144 MiB, as generating text goes through the layers of a
model; `hot` uses one copy. Beside the layers two floors are measured: reading the packed bytes, and the bare
instructions of the products (see floors.py).
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from bitexp.bench.output import save_rows
from bitexp.bench.peers import PEERS, Peer
from bitexp.bench.roofline import DOTS, READ, LayerTiming, plot_roofline
from bitexp.bench.timing import Call, measure
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import counted
from bitexp.common.program import positive
from bitexp.common.spelling import nearest
from bitexp.kernels.cpu import memory
from bitexp.kernels.cpu.jit import missing

COLD = 144 << 20
SCALE = 0.02
TOLERANCE = 0.05
"""Relative error of outputs, above which an implementation is wrong and not only coarse."""


def shape(text: str) -> tuple[int, int]:
    """`OUTPUTSxINPUTS`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a shape: write OUTPUTSxINPUTS, as in 2560x6912")
    return int(match[1]), int(match[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `layers`."""
    shapes = [(2560, 6912), (6912, 2560), (1024, 4096), (256, 1024)]
    parser.add_argument(
        "--shapes", type=shape, nargs="+", default=shapes, metavar="OUTxIN", help="default: four of them"
    )
    parser.add_argument("--tokens", type=positive, nargs="+", default=[1, 16, 128], help="default: 1 16 128")
    parser.add_argument("--cache", nargs="+", choices=["cold", "hot"], default=["cold", "hot"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=positive, default=9, help="the median of so many (default: 9)")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--output", type=Path, help="a folder for layers.csv, .md, and roofline.png and .svg")


def chosen(only: Sequence[str] | None) -> dict[str, Peer]:
    """The implementations to measure; fp32 always, since the others are compared with it."""
    for name in only or []:
        if name not in PEERS:
            raise UserError(
                f"unknown implementation '{name}'.{nearest(name, PEERS)} Known: {', '.join(PEERS)}"
            )
    return {n: peer for n, peer in PEERS.items() if only is None or n in only or n == "torch fp32"}


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures, prints a table per shape and cache, and writes the files where asked to."""
    torch.set_num_threads(options.threads)
    peers, rows = chosen(options.only), []
    clock = "CPU time" if options.threads == 1 else "wall time"
    report.line(
        f"ternary layers, {counted(options.threads, 'thread')}, {clock}, median of "
        f"{counted(options.rounds, 'round')}, torch {torch.__version__}"
    )
    announced: set[str] = set()
    with torch.inference_mode():
        for cache in options.cache:
            for outputs, inputs in options.shapes:
                timings = []
                for tokens in options.tokens:
                    candidates, passed = prepare(peers, cache, outputs, inputs, tokens, options.threads)
                    for line in passed - announced:
                        report.line(line)
                    announced |= passed
                    timings += rate(
                        cache, outputs, inputs, tokens, measure(candidates, options.rounds, options.threads)
                    )
                report.table(layers_table(timings))
                rows += timings
    if options.output:
        save_rows(options.output / "layers", [as_dict(row) for row in rows])
        plot_roofline(options.output / "roofline", rows)
        report.line(f"written to {options.output}")


def prepare(
    peers: dict[str, Peer], cache: str, outputs: int, inputs: int, tokens: int, threads: int
) -> tuple[dict[str, list[Call]], set[str]]:
    """The calls of every implementation, and why some are left out.

    Raises:
        RuntimeError: an implementation gives other numbers.
    """
    draws = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, generator=draws)
    x = torch.randn(tokens, inputs, generator=draws)
    expected = x @ codes.float().t() * SCALE
    candidates: dict[str, list[Call]] = {}
    passed = set()
    for name, peer in peers.items():
        copies = 1 if cache == "hot" else max(2, -(-COLD // int(outputs * inputs * peer.bits / 8)))
        try:
            calls = [peer.make(codes, SCALE, x, threads) for _ in range(min(copies, 600))]
        except (ImportError, OSError) as error:
            passed.add(f"{name} is skipped: {error} (package: {peer.package})")
            continue
        except ValueError as error:
            passed.add(f"{name} is skipped for {outputs}x{inputs}, {counted(tokens, 'token')}: {error}")
            continue
        got = torch.as_tensor(calls[0]())
        off = float((got - expected).norm() / expected.norm())
        if not off < TOLERANCE:
            raise RuntimeError(
                f"{name} computes different numbers at {outputs}x{inputs}, "
                f"{counted(tokens, 'token')}: {off:.3f}"
            )
        candidates[name] = list(calls)
    return {**candidates, **floors(cache, outputs, inputs, tokens)}, passed


def floors(cache: str, outputs: int, inputs: int, tokens: int) -> dict[str, list[Call]]:
    """Reading as many bytes as the packed weights have, and as many products as the layer has.

    The second only where the processor has an instruction for them.
    """
    if missing():
        return {}
    from bitexp.bench.floors import read_bytes

    size = max(256, outputs * inputs // 4 // 256 * 256)
    copies = 1 if cache == "hot" else min(600, -(-COLD // size))
    lines = memory.copied(torch.ones(copies, size, dtype=torch.uint8))  # in pages as weights lie in
    read, multiply = read_bytes(), bare_products(outputs * inputs * tokens)
    return {
        READ: [functools.partial(call_on, read, line) for line in lines],
        **({} if multiply is None else {DOTS: [multiply]}),
    }


def bare_products(products: int) -> Call | None:
    """As many products as that and nothing else; None where the processor has no instruction for them."""
    from bitexp.bench.floors import CHAINS, bare_dots
    from bitexp.kernels.cpu.dots import ISAS, supported

    isa = supported()[0]
    if ISAS[isa].paired:
        return None
    return functools.partial(bare_dots(isa), max(1, products // (64 * CHAINS)), 1)


def call_on(read: Callable[[int, int], int], given: torch.Tensor) -> int:
    """Reads a tensor's bytes."""
    return read(given.data_ptr(), given.numel())


def rate(cache: str, outputs: int, inputs: int, tokens: int, seconds: dict[str, float]) -> list[LayerTiming]:
    """Rows from times: each against the larger floor and against fp32."""
    floor = max(seconds.get(READ, 0.0), seconds.get(DOTS, 0.0)) or None
    fp32 = seconds.get("torch fp32")
    return [
        LayerTiming(cache, outputs, inputs, tokens, n, s, floor and s / floor, fp32 and fp32 / s)
        for n, s in seconds.items()
    ]


def as_dict(row: LayerTiming) -> dict[str, Any]:
    """A row as it is written."""
    return {
        **vars(row), "gmac_per_second": row.products / row.seconds / 1e9,
    }  # fmt: skip


def layers_table(rows: list[LayerTiming]) -> Table:
    """A line per implementation, the fastest first; three columns per number of tokens."""
    first = rows[0]
    out = Table(box=box.SIMPLE_HEAD, title=f"{first.outputs} x {first.inputs}, weights {first.cache}")
    out.add_column("layer in")
    counts = list(dict.fromkeys(row.tokens for row in rows))
    for tokens in counts:
        for name in (f"{counted(tokens, 'token')}, us", "x floor", "x fp32"):
            out.add_column(name, justify="right")
    cells = {(row.name, row.tokens): row for row in rows}
    by_speed = sorted(cells.values(), key=lambda row: (row.tokens, row.seconds))
    for name in dict.fromkeys(row.name for row in by_speed):
        line = []
        for tokens in counts:
            row = cells.get((name, tokens))
            line += ["", "", ""] if row is None else [
                f"{row.seconds * 1e6:,.1f}", ratio(row.times_floor), ratio(row.times_fp32)
            ]  # fmt: skip
        out.add_row(name, *line)
    return out


def ratio(value: float | None) -> str:
    """Two digits behind the point; nothing where there is nothing to compare with."""
    return "" if value is None else f"{value:.2f}"
