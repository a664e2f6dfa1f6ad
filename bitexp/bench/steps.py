"""The cost of a training step: time and saved memory by quantizer, beside PyPI `bitlinear` where installed.

    python -m bitexp bench
    python -m bitexp bench --model vit_tiny --shape 3 32 32 --batch 16 --rounds 20
    python -m bitexp bench --model decoder --batch 8 --context 128

All candidates take turns in one process, step by step; what is printed are ratios to `full` pair by
pair, since the machine may be shared.
"""

from __future__ import annotations

import argparse

import torch
from rich import box
from rich.table import Table

from bitexp.bench.candidates import CONTROL, FULL, Cost, candidates, measure
from bitexp.common.console import Report
from bitexp.common.format import counted, size
from bitexp.common.memory import keep_freed_memory
from bitexp.common.program import positive

PRECISIONS = ("binary", "ternary_mean", "ternary_median", "b158", "reloaded")
"""What is measured beside `full` and `full_norm` where nothing else is asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `step`."""
    parser.add_argument(
        "--model", default="vit", help="a name in conf/model, reference_mlp or reference_block (default: vit)"
    )
    images = parser.add_argument_group("for models of images")
    images.add_argument("--shape", type=positive, nargs=3, default=[1, 8, 8], metavar=("C", "H", "W"))
    images.add_argument("--classes", type=positive, default=10)
    text = parser.add_argument_group("for models of text")
    text.add_argument("--context", type=positive, default=128, help="tokens at once (default: 128)")
    text.add_argument("--vocabulary", type=positive, default=256)
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--rounds", type=positive, default=40, help="steps of each candidate (default: 40)")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument(
        "--quantizers", nargs="+", default=[*PRECISIONS], metavar="NAME",
        help="names in conf/quantizer, beside full and full_norm (default: the published precisions)",
    )  # fmt: skip
    parser.add_argument("--kernel", default="auto", help="which kernel trains (default: auto)")


def steps_table(results: dict[str, Cost]) -> Table:
    """A row per candidate."""
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("step of")
    for name in (
        "CPU ms (median)",
        "x full",
        "saved for backward",
        "x full",
        "in norm + layer",
        "x full_norm",
    ):
        out.add_column(name, justify="right")
    full, control = results[FULL], results[CONTROL]
    for name, cost in results.items():
        inside = (size(cost.in_layers), f"{cost.in_layers / control.in_layers:.2f}")
        out.add_row(
            name,
            f"{1000 * cost.seconds:.1f}",
            f"{cost.ratio:.2f}",
            size(cost.saved),
            f"{cost.saved / full.saved:.2f}",
            *(inside if cost.in_layers else ("", "")),
        )
    return out


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures and prints the table."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as a run does
    competitors = candidates(options)
    report.line(
        f"{options.model} on {' x '.join(map(str, competitors[0].inputs.shape))}, "
        f"{counted(options.rounds, 'round')}, {counted(options.threads, 'thread')}, AdamW, "
        f"torch {torch.__version__}"
    )
    report.table(steps_table(measure(competitors, options.rounds)))
