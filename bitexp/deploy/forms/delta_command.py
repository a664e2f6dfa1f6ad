"""A fine-tuned network as one bit per weight on its base, with trained scales.

    python -m bitexp delta outputs/lm_full/BASE outputs/lm_full/FINE
    python -m bitexp generate outputs/lm_full/BASE --delta outputs/lm_full/FINE/delta.safetensors

Both are runs in full precision, the second begun from the first (start.from). Scales are trained on the
training samples of the second, so that its outputs are met (BitDelta, arXiv 2402.10193); what is no matrix of
the body is stored as it is. The delta is written into the folder of the second run, as delta.safetensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.program import run_program

BATCH = 32
"""Samples of a step."""
HELD_OUT = 2000
"""Samples of the test part that networks are compared on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("base", type=Path, help="the run that was fine-tuned")
    parser.add_argument("fine", type=Path, help="the run that began with it")
    parser.add_argument("--steps", type=int, default=200, help="for the scales; 0: none (default: 200)")
    parser.add_argument("--lr", type=float, default=1e-4, help="of Adam for the scales (default: 0.0001)")
    parser.add_argument("--samples", type=int, default=800, help="of the training part (default: 800)")
    parser.add_argument("--threads", type=int, default=1)


def run(options: argparse.Namespace) -> None:
    """Makes and writes the delta, and prints a table.

    Raises:
        UserError: no such runs, quantized ones, others than of one network, or a number out of its range.
    """
    if options.steps < 0 or options.samples < 1 or not options.lr > 0 or options.threads < 1:
        raise UserError("--steps must not be below 0; --samples, --lr and --threads must be above it")
    import torch
    from rich.table import Table

    from bitexp.common.console import Report
    from bitexp.common.format import path_text, size
    from bitexp.deploy.engine_table import data_of
    from bitexp.deploy.forms.calibration import training_batches, training_samples
    from bitexp.deploy.forms.delta import applied, delta_of, save_delta, train_scales
    from bitexp.deploy.forms.file import full_precision
    from bitexp.deploy.forms.load import DELTA, packed_path
    from bitexp.deploy.load import find_run
    from bitexp.deploy.packed_file import unpack
    from bitexp.deploy.score import Samples
    from bitexp.kernels.reference import Reference

    torch.set_num_threads(options.threads)
    report, kernel = Report(), Reference()
    paths = [packed_path(find_run(path)) for path in (options.base, options.fine)]
    base, fine = (full_precision(path) for path in paths)
    delta, data = delta_of(base, fine), data_of(paths[1].parent)
    test = Samples.held_out(data, HELD_OUT)
    out = paths[1].parent / DELTA

    table = Table(box=None, pad_edge=False)
    for heading in ("network", "loss", "accuracy", "bytes"):
        table.add_column(heading, justify="left" if heading == "network" else "right")

    def measure(name: str, file: Any, tensors: Any) -> None:
        score = test.score(unpack(out, file, kernel)[0])
        count = sum(tensor.nbytes for tensor in tensors.values())
        table.add_row(name, f"{score.loss:.4f}", f"{score.accuracy:.4f}", size(count))

    measure("base", base, base[1])
    measure("base + delta, mean scales", applied(base, delta), delta[1])
    if options.steps:
        samples, model = training_samples(data, options.samples), unpack(paths[1], fine, kernel)[0]
        batches = training_batches(samples, BATCH, options.steps)

        def tell(step: int, loss: float) -> None:
            if step % 50 == 0 or step == options.steps - 1:
                report.detail(f"step {step + 1} of {options.steps}, mean squared difference {loss:.4g}")

        train_scales(base, delta, model, batches, options.lr, tell)
        measure("base + delta, trained scales", applied(base, delta), delta[1])
    measure("fine-tuned", fine, fine[1])
    save_delta(out, delta)
    report.table(table, [])
    report.line(f"{path_text(out)} goes with the base, by --delta of python -m bitexp generate")


def main(words: Sequence[str]) -> int:
    """`python -m bitexp delta`."""
    return run_program("delta", __doc__, add_arguments, run, words)
