"""What a flipped bit does: the packed files of runs under random and under chosen flips.

    python -m bitexp attack outputs/vit_ternary                    every finished run in the folder
    python -m bitexp attack outputs/vit_ternary/ID --layout pack2  the same codes, packed otherwise
    python -m bitexp attack outputs/vit_ternary/ID --batches 5 --flips 500

Bits are flipped as they lie in the file: in the codes alone, and in all tensors. Chosen flips are those of
the progressive bit search (arXiv 1903.12269), until predictions are those of chance. What is measured is kept
in the run's folder, where reports find it, and is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.program import run_program

COUNTS = ("batches", "batch", "flips", "seeds", "samples", "trials", "threads")
"""Options that are at least 1."""
IMAGES, WINDOWS = 1000, 64
"""Samples of the test part that quality is measured on."""
IMAGES_AT_ONCE, WINDOWS_AT_ONCE = 128, 8
"""Samples of a search's batch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run, or a folder of them")
    parser.add_argument("--layout", help="pack the codes so first: pack1, pack2, pack5, ... (default: as is)")
    parser.add_argument("--batches", type=int, default=3, help="searches, each on its batch (default: 3)")
    parser.add_argument("--batch", type=int, help="samples of a batch (default: 128 images, 8 windows)")
    parser.add_argument("--flips", type=int, default=100, help="of a search at most (default: 100)")
    parser.add_argument("--seeds", type=int, default=5, help="draws of random flips (default: 5)")
    parser.add_argument("--samples", type=int, help="of the test part (default: 1000 images, 64 windows)")
    parser.add_argument("--trials", type=int, default=200, help="flips looked for by checks (default: 200)")
    parser.add_argument("--threads", type=int, default=1)


def run(options: argparse.Namespace) -> None:
    """Measures each run and prints a table.

    Raises:
        UserError: no such run or layout, no data, or a number out of its range.
    """
    for name in COUNTS:
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
    import torch

    from bitexp.common.spelling import nearest
    from bitexp.deploy.load import every_run
    from bitexp.deploy.packing import LAYOUTS
    from bitexp.deploy.robustness.later import measure_runs
    from bitexp.deploy.robustness.measure import Options

    if options.layout is not None and options.layout not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise UserError(
            f"unknown layout '{options.layout}'.{nearest(options.layout, LAYOUTS)} Known: {known}"
        )
    torch.set_num_threads(options.threads)
    names = [name for name in COUNTS if name != "threads"]
    asked = Options(options.layout, **{name: getattr(options, name) for name in names})
    name = "attack" if asked.layout is None else f"attack_{asked.layout}"
    measure_runs(every_run(options.runs), name, asdict(asked), lambda *found: measure(asked, *found), rows)


def measure(options: Any, folder: Path, data: Any, tell: Callable[[str], None]) -> Mapping[str, float]:
    """The metrics of one run."""
    from bitexp.deploy.robustness.measure import attacked
    from bitexp.deploy.score import Samples
    from bitexp.track.folder import RunFolder

    text = "vocabulary" in data.facts
    count = options.samples or (WINDOWS if text else IMAGES)
    batch = options.batch or (WINDOWS_AT_ONCE if text else IMAGES_AT_ONCE)
    samples = Samples.held_out(data, count)
    return attacked(RunFolder(folder).packed, samples, replace(options, batch=batch), tell)


def rows(metrics: Mapping[str, float]) -> list[dict[str, str]]:
    """What flips did, in accuracies and median losses: a line for each set of bits."""
    from bitexp.deploy.robustness.measure import RANDOM

    prefix = next(name for name in metrics if name.endswith("/accuracy")).removesuffix("/accuracy")
    found = []
    for name, words in {"codes": "codes", "codes_clamped": "codes, clamped", "all": "all tensors"}.items():
        place = f"{prefix}/{name}"
        if f"{place}/flips_to_chance" not in metrics:
            continue
        row = {"bits of": words, "as it is": f"{metrics[f'{prefix}/accuracy']:.3f}"}
        for count in RANDOM:
            row[f"{count} random"] = accuracy(metrics, f"{place}/accuracy_{count}")
        losses = [metrics.get(f"{place}/loss_{count}") for count in RANDOM]
        row["their losses"] = " ".join(f"{loss:.3g}" for loss in losses if loss is not None)
        more = "" if metrics[f"{place}/reached"] == 1 else "> "
        row["chosen, to chance"] = f"{more}{metrics[f'{place}/flips_to_chance']:.1f}"
        row["then"] = accuracy(metrics, f"{place}/accuracy_chosen")
        if f"{place}/found" in metrics:
            row["found"] = f"{metrics[f'{place}/found']:.0%}"
        found.append(row)
    return found


def accuracy(metrics: Mapping[str, float], name: str) -> str:
    """A mean with its deviation."""
    if name not in metrics:
        return ""
    spread = metrics.get(f"{name}_std")
    return f"{metrics[name]:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def main(words: Sequence[str]) -> int:
    """`python -m bitexp attack`."""
    return run_program("attack", __doc__, add_arguments, run, words)
