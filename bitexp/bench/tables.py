"""Weights of a trained network by tables of values, and what a choice of tables for each group would save.

    python -m bitexp bench tables outputs/fashion_cnn/ID
    python -m bitexp bench tables outputs/lm_full --group 32 --output tables

Of a run in full precision the weights of the body are rounded in groups, activations stay floats, and the
test part is measured. A group has a scale of 16 bits, by its largest weight or by the least squared error of
twenty, and takes the table with the least squared error, whose number costs bits as well. The special values
of the last row of each width are those of BitMoD (arXiv 2411.11745), which is under an application for a
patent: they are measured here, and are no quantizer.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from bitexp.bench.output import save_rows
from bitexp.common.console import Report
from bitexp.common.format import counted, path_text
from bitexp.common.program import positive
from bitexp.deploy.engine_table import data_of
from bitexp.deploy.forms.file import full_precision, matrices
from bitexp.deploy.forms.load import packed_path
from bitexp.deploy.load import find_run
from bitexp.deploy.packed_file import PackedFile, unpack
from bitexp.deploy.score import Samples
from bitexp.kernels.reference import Reference
from bitexp.quant.weights.codebook import TABLES

Values = tuple[float, ...]

SCALE_BITS = 16
SHARES = tuple(share / 20 for share in range(20, 0, -1))
"""Scales that are tried where the best is looked for, in units of that by the largest weight."""
INTEGERS: Mapping[str, Values] = {"int3": tuple(range(-3, 4)), "int4": tuple(range(-7, 8))}
NAMED: Mapping[str, Values] = {**INTEGERS, **TABLES}


def with_one_of(name: str, values: Sequence[float]) -> tuple[Values, ...]:
    """A table with each of some values in turn, for the code that it does not use."""
    return tuple(tuple(sorted((*NAMED[name], value))) for value in values)


CHOICES: Mapping[str, tuple[Values, ...]] = {
    "int3": (NAMED["int3"],),
    "fp3": (NAMED["fp3"],),
    "int3 or fp3": (NAMED["int3"], NAMED["fp3"]),
    "fp3 with 3, -3, 6 or -6": with_one_of("fp3", (3, -3, 6, -6)),
    "int4": (NAMED["int4"],),
    "fp4": (NAMED["fp4"],),
    "nf4": (NAMED["nf4"],),
    "int4, fp4 or nf4": (NAMED["int4"], NAMED["fp4"], NAMED["nf4"]),
    "fp4 with 5, -5, 8 or -8": with_one_of("fp4", (5, -5, 8, -8)),
}
"""The tables that a group may choose from."""


@dataclass(frozen=True)
class Rounded:
    """A weight, rounded. `chosen` counts the groups by their table."""

    weight: Tensor
    chosen: Tensor


def rounded(weight: Tensor, tables: Sequence[Values], size: int, shares: Sequence[float]) -> Rounded:
    """`weight [out, ...]` in groups of `size` along each row, the last of which may be shorter.

    Every group takes the table and the share of the scale with the least squared error, the first of equals.
    All tables have a zero, which is what a short group is filled up with.
    """
    rows = weight.detach().flatten(1)
    groups = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size)).reshape(-1, size)
    best, least = torch.zeros_like(groups), torch.full((len(groups),), torch.inf)
    chosen = torch.zeros(len(groups), dtype=torch.long)
    for number, table in enumerate(tables):
        for share in shares:
            values = nearest(groups, table, share)
            error = (values - groups).square().sum(1)
            better = error < least
            best, least = torch.where(better[:, None], values, best), torch.where(better, error, least)
            chosen = torch.where(better, number, chosen)
    back = best.reshape(len(rows), -1)[:, : rows.shape[1]].reshape(weight.shape)
    return Rounded(back, torch.bincount(chosen, minlength=len(tables)))


def nearest(groups: Tensor, table: Values, share: float) -> Tensor:
    """The nearest values of a table, whose largest is a share of the largest weight of each group."""
    values = torch.tensor(table)
    scale = groups.abs().amax(1, keepdim=True) * (share / float(values.abs().max()))
    places = torch.bucketize(groups / scale.clamp(min=1e-30), (values[1:] + values[:-1]) / 2)
    return values[places] * scale


def bits(tables: Sequence[Values], size: int) -> float:
    """Bits of a weight: its code, and its share of the scale and of the number of the table."""
    code = max(math.ceil(math.log2(len(table))) for table in tables)
    return code + (SCALE_BITS + math.ceil(math.log2(len(tables)))) / size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `tables`."""
    parser.add_argument("run", type=Path, help="a run in full precision, or a folder of runs (the last one)")
    parser.add_argument("--group", type=positive, default=128, help="weights of a group (default: 128)")
    parser.add_argument("--samples", type=positive, default=2000, help="of the test part (default: 2000)")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--output", type=Path, help="a folder for tables.csv and tables.md")


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures, prints a table, and writes the files where asked to.

    Raises:
        UserError: no such run, one that is quantized, or no data.
    """
    torch.set_num_threads(options.threads)
    path = packed_path(find_run(options.run))
    file = full_precision(path)
    samples = Samples.held_out(data_of(path.parent), options.samples)
    rows = measured(file, samples, options.group)
    report.line(
        f"{path_text(path)}: {counted(len(matrices(*file)), 'layer')} in groups of {options.group}, "
        f"{counted(len(samples), 'sample')} of the test part; the first row is full precision"
    )
    report.table(table_of(rows))
    if options.output:
        save_rows(options.output / "tables", rows)
        report.line(f"written to {options.output}")


def measured(file: PackedFile, samples: Samples, size: int) -> list[dict[str, Any]]:
    """A row for each choice of tables, full precision first."""
    model, _ = unpack(Path("packed"), file, Reference())
    weights = {name: file[1][name] for name in matrices(*file)}
    total = sum(float(weight.square().sum()) for weight in weights.values())
    full = samples.score(model)
    rows = [row("full precision", 32.0, (0.0, full.loss, full.accuracy), (0.0, full.loss, full.accuracy), "")]
    for name, tables in CHOICES.items():
        by_scale, shares = [], ""
        for scales in ((1.0,), SHARES):
            found = {key: rounded(weight, tables, size, scales) for key, weight in weights.items()}
            with torch.no_grad():
                for key, one in found.items():
                    model.get_parameter(key).copy_(one.weight)
            error = sum(float((found[key].weight - weight).square().sum()) for key, weight in weights.items())
            score = samples.score(model)
            by_scale.append((error / total, score.loss, score.accuracy))
            if len(tables) > 1 and not shares:
                counts = torch.stack([one.chosen for one in found.values()]).sum(0)
                shares = " ".join(f"{share:.0%}" for share in (counts / counts.sum()).tolist())
        rows.append(row(name, bits(tables, size), by_scale[0], by_scale[1], shares))
    return rows


def row(
    name: str, width: float, by_largest: Sequence[float], best: Sequence[float], shares: str
) -> dict[str, Any]:
    """A row: relative squared error, loss and accuracy with scales by the largest weight, and the best."""
    keys = ("error", "loss", "accuracy")
    found = {f"{key}{end}": value for end, values in (("", by_largest), ("_best_scale", best))
             for key, value in zip(keys, values, strict=True)}  # fmt: skip
    return {"values": name, "bits": width, **found, "chosen": shares}


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line per row."""
    out = Table(box=box.SIMPLE_HEAD)
    out.add_column("values")
    headings = (
        "bits",
        "squared error",
        "loss",
        "accuracy",
        "best scale: error",
        "loss",
        "accuracy",
        "chosen",
    )
    for heading in headings:
        out.add_column(heading, justify="right")
    for line in rows:
        cells = (
            text
            for end in ("", "_best_scale")
            for text in (
                f"{line[f'error{end}']:.4f}",
                f"{line[f'loss{end}']:.4f}",
                f"{line[f'accuracy{end}']:.4f}",
            )
        )
        out.add_row(line["values"], f"{line['bits']:.2f}", *cells, line["chosen"])
    return out
