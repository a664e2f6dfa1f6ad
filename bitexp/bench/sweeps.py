"""A small grid by each launcher, beside a plain torch loop of the same model.

    python -m bitexp bench sweep
    python -m bitexp bench sweep --launchers process --cells 8 -- +experiment=fashion_mlp trainer.epochs=1

Cells of a grid over learning rates, with one thread each. The CPU time of all processes counts, and is cut
into what these parts take when they are measured by themselves: the imports, as often as the launcher makes
them; the bare steps; the forward passes of validation and test. The rest is the loop around them, the
composition of configs, the packed file and the records. The plain loop imports torch in every cell.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count, islice

import torch
from rich import box
from rich.table import Table

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.config.compose import composed
from bitexp.config.schema import read_settings
from bitexp.run.build import build
from bitexp.tasks.objectives import cross_entropy

WORDS = ("+experiment=vit_ternary", "trainer.epochs=10")
LAUNCHERS = ("basic", "joblib", "process")
PLAIN = "plain torch loop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `sweep`."""
    parser.add_argument("--cells", type=int, default=4, help="of the grid (default: 4)")
    parser.add_argument("--jobs", type=int, default=2, help="at once, where a launcher can (default: 2)")
    parser.add_argument(
        "--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS), help="default: all of them"
    )
    parser.add_argument("words", nargs="*", default=[*WORDS], help=f"of a run (default: {' '.join(WORDS)})")


@dataclass(frozen=True)
class Parts:
    """CPU seconds of what a cell cannot do without."""

    imports: float
    steps: float
    evaluation: float


@dataclass(frozen=True)
class Sweep:
    """A grid that was made: seconds on the clock and of the processors, and how often all was imported."""

    seconds: float
    cpu: float
    imports: int


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures and prints the table."""
    if options.cells < 1 or options.jobs < 1:
        raise UserError("--cells and --jobs are at least 1")
    torch.set_num_threads(1)
    parts = parts_of(options.words)
    torch_alone = importing("torch")
    report.line(f"{' '.join(options.words)}: {options.cells} cells, torch {torch.__version__}")
    sweeps = {}
    for name in options.launchers:
        if name == "joblib" and find_spec("hydra_plugins.hydra_joblib_launcher") is None:
            report.line("joblib is not installed: pip install 'bitexp[joblib]'")
            continue
        sweeps[name] = grid(name, options)
    plain = Parts(torch_alone, parts.steps, parts.evaluation)
    report.table(sweeps_table(sweeps, parts, plain, options.cells))


def grid(launcher: str, options: argparse.Namespace) -> Sweep:
    """Makes the grid in a folder that is removed again."""
    jobs = 1 if launcher == "basic" else options.jobs
    rates = ",".join(f"{rate:.6f}" for rate in islice(count(0.001, 0.0001), options.cells))
    words = [*options.words, f"optimizer.lr={rates}", f"hydra/launcher={launcher}"]
    words += [] if launcher == "basic" else [f"hydra.launcher.n_jobs={jobs}"]
    with tempfile.TemporaryDirectory() as folder:
        seconds, cpu = timed(["-m", "bitexp", "-m", *words], {"BITEXP_OUTPUTS": folder})
    return Sweep(seconds, cpu, jobs if launcher == "joblib" else 1)


def timed(words: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds on the clock and of the processors that a Python takes with all processes it starts.

    Raises:
        UserError: it failed.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run([sys.executable, *words], env=surroundings, capture_output=True, encoding="utf-8")
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise UserError(f"python {' '.join(words)} failed:\n{said}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, used


def importing(module: str) -> float:
    """CPU seconds of a Python that imports a module; the second time counts, when its files are cached."""
    return [timed(["-c", f"import {module}"])[1] for _ in range(2)][1]


def parts_of(words: Sequence[str]) -> Parts:
    """The parts of one cell, measured here: all of its steps, its validations and its two tests."""
    settings = read_settings(composed(list(words)))
    built, trainer = build(settings), settings.trainer
    task, data = built.task, built.data
    optimizer = task.configure_optimizers()
    loader = data.train_dataloader()
    batches = list(islice(loader, trainer.train_batches))
    total = trainer.epochs * len(batches) if trainer.max_steps is None else trainer.max_steps
    began = time.process_time()
    for step in range(total):
        inputs, targets = batches[step % len(batches)]
        optimizer.zero_grad()
        cross_entropy(task(inputs).float(), targets).backward()
        optimizer.step()
    steps = time.process_time() - began
    task.eval()
    began = time.process_time()
    validations = -(-trainer.epochs // trainer.validate_every)
    with torch.no_grad():
        for loaded, times in ((data.val_dataloader(), validations), (data.test_dataloader(), 2)):
            for _ in range(times):
                for inputs, _ in islice(iter(loaded), trainer.eval_batches):
                    task(inputs)
    return Parts(importing("bitexp.run.road"), steps, time.process_time() - began)


def sweeps_table(sweeps: Mapping[str, Sweep], parts: Parts, plain: Parts, cells: int) -> Table:
    """A row per launcher, and the plain loop."""
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("launcher")
    for name in (
        "cells an hour",
        "cells a CPU hour",
        "CPU s a cell",
        "imports",
        "steps",
        "evaluation",
        "rest",
    ):
        out.add_column(name, justify="right")
    for launcher, sweep in sweeps.items():
        cpu, imports = sweep.cpu / cells, sweep.imports * parts.imports / cells
        row(out, launcher, 3600 * cells / sweep.seconds, cpu, [imports, parts.steps, parts.evaluation])
    shares = [plain.imports, plain.steps, plain.evaluation]
    row(out, PLAIN, None, sum(shares), shares)
    return out


def row(out: Table, name: str, pace: float | None, cpu: float, shares: list[float]) -> None:
    """Appends a row, with the parts as shares of the CPU time."""
    rest = max(0.0, cpu - sum(shares))
    texts = [f"{part / cpu:.0%}" for part in (*shares, rest)]
    out.add_row(name, "" if pace is None else f"{pace:.0f}", f"{3600 / cpu:.0f}", f"{cpu:.2f}", *texts)
