"""Ternary layers on a GPU: ours beside torch and installed peers, against the bandwidth of its memory.

    python -m bitexp bench gpu
    python -m bitexp bench gpu --layers 2560x6912 --tokens 1 16 4096 --save gpu.csv

Every candidate is replayed as a CUDA graph that goes through so many copies of the weights that no cache
holds them, and candidates take turns round by round. `x floor` compares with reading the packed weights
and the activations once, and writing the outputs, at the bandwidth that copying memory reaches on this
GPU. `error` is the distance from the exact product of the same codes, relative to its norm.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from bitexp.bench.gpu_layers import BASE, CANDIDATES, check_gpu
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import counted
from bitexp.common.program import positive
from bitexp.quant.absmax import absmax_codes

LAYERS = ("2560x6912", "13824x2560", "4096x4096", "1024x1024")
TOKENS = (1, 4, 16, 64, 512, 4096)
MOST_COPIES = 64
LEAST = 2e-3
"""Seconds that a candidate works at least in each round."""


@dataclass(frozen=True)
class GpuTiming:
    """What a candidate took for a layer of outputs x inputs; `failed` says why there is no time."""

    layer: str
    tokens: int
    name: str
    us: float | None
    error: float | None
    floor_us: float
    failed: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--layers", nargs="+", default=LAYERS, metavar="OUTxIN", help="(default: four)")
    parser.add_argument("--tokens", nargs="+", type=positive, default=TOKENS)
    parser.add_argument("--rounds", type=positive, default=11)
    parser.add_argument("--save", type=Path, metavar="FILE.csv", help="also write the numbers")


def shape_of(layer: str) -> tuple[int, int]:
    """`2560x6912` -> (2560, 6912)."""
    outputs, _, inputs = layer.partition("x")
    if not (outputs.isdigit() and inputs.isdigit() and int(outputs) and int(inputs)):
        raise UserError(f"--layers {layer}: a layer is written OUTPUTSxINPUTS, as in 2560x6912")
    return int(outputs), int(inputs)


def bandwidth() -> float:
    """Bytes read and written per second while a gibibyte is copied."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    graph = recorded([lambda: target.copy_(source)])
    return 2 * 2**30 / statistics.median(seconds(graph, 5) for _ in range(11))


def recorded(calls: list[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """The calls as one graph; each is made before, so that nothing is compiled or allocated inside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        for call in calls:
            call()
    return graph


def seconds(graph: torch.cuda.CUDAGraph, times: int) -> float:
    """Per replay, among `times` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


@dataclass
class Contender:
    """A candidate that is ready to be timed."""

    name: str
    graph: torch.cuda.CUDAGraph
    copies: int
    replays: int
    error: float
    times: list[float]


def contender(name: str, codes: Tensor, scale: Tensor, x: Tensor, exact: Tensor) -> Contender:
    """Makes the layers of a candidate, one for each copy of the weights, and records them."""
    make, width, _ = CANDIDATES[name]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = int(min(MOST_COPIES, max(2, 2 * cache // (codes.numel() * width) + 1)))
    layers = [make(codes.clone(), scale.clone()) for _ in range(copies)]
    y = layers[0](x)
    y = getattr(layers[0], "finish", lambda y: y)(y)
    error = float((y.double() - exact).norm() / exact.norm())
    graph = recorded([partial(layer, x) for layer in layers])
    seconds(graph, 1)
    replays = max(1, round(LEAST / seconds(graph, 3)))
    return Contender(name, graph, copies, replays, error, [])


def measure(layer: str, tokens: int, rounds: int, bytes_per_second: float) -> list[GpuTiming]:
    """Every candidate for one layer and number of tokens."""
    outputs, inputs = shape_of(layer)
    torch.manual_seed(0)
    codes = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, device="cuda")
    scale = torch.tensor(0.02, device="cuda")
    x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
    x_codes, x_scale = absmax_codes(x.float(), 127, (-1,))
    exact = (x_codes.double() @ codes.double().t()) * (x_scale.double() * scale.double())
    moved = outputs * inputs / 4 + 2 * tokens * (inputs + outputs)
    row = partial(GpuTiming, layer, tokens, floor_us=1e6 * moved / bytes_per_second)
    ready, rows = [], []
    for name, (_, _, module) in CANDIDATES.items():
        if module is not None and not find_spec(module):
            continue
        try:
            ready.append(contender(name, codes, scale, x, exact))
        except Exception as problem:  # a peer may fail in any way, and the others are still measured
            text = f"{type(problem).__name__}: {problem}".strip().splitlines()[0][:100]
            rows.append(row(name=name, us=None, error=None, failed=text))
    for _ in range(rounds):
        for c in ready:
            c.times.append(seconds(c.graph, c.replays) / c.copies)
    return [row(name=c.name, us=1e6 * statistics.median(c.times), error=c.error) for c in ready] + rows


def timings_table(rows: list[GpuTiming]) -> Table:
    """A line per candidate, ratios beside the times."""
    base = {(r.layer, r.tokens): r.us for r in rows if r.name == BASE and r.us}
    out = Table(box=box.SIMPLE_HEAD)
    for name in ("layer", "tokens", "candidate"):
        out.add_column(name)
    for name in ("us", "x floor", f"speed-up over {BASE}", "error"):
        out.add_column(name, justify="right")
    for r in rows:
        first = (r.layer, str(r.tokens), r.name)
        if r.us is None or r.error is None:
            out.add_row(*first, "failed", "", "", r.failed)
            continue
        against = base.get((r.layer, r.tokens))
        speedup = f"{against / r.us:.2f}" if against else ""
        out.add_row(*first, f"{r.us:.2f}", f"{r.us / r.floor_us:.2f}", speedup, f"{r.error:.1e}")
    return out


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures and prints; `UserError` where there is no GPU."""
    for layer in options.layers:
        shape_of(layer)
    check_gpu()
    speed = bandwidth()
    report.line(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {counted(options.rounds, 'round')}; "
        f"copying reaches {speed / 1e12:.2f} TB/s"
    )
    rows: list[GpuTiming] = []
    for layer in options.layers:
        for tokens in options.tokens:
            rows += measure(layer, tokens, options.rounds, speed)
            torch.cuda.empty_cache()
    report.table(timings_table(rows))
    if options.save:
        with options.save.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(r) for r in rows)
