"""The quality of a stack at some sizes, as a table; what was measured is kept, where reports find it."""

from __future__ import annotations

import math
from pathlib import Path

from rich.table import Table

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import path_text, size
from bitexp.deploy.engine_table import data_of
from bitexp.deploy.forms.load import stack_path
from bitexp.deploy.forms.stack import read_stack
from bitexp.deploy.load import find_run
from bitexp.deploy.packed_file import unpack
from bitexp.deploy.score import Samples
from bitexp.kernels.reference import Reference
from bitexp.track.folder import checksum
from bitexp.track.measurements import keep, measured

SAMPLES = 2000
"""What is looked at unless more or less is asked for."""


def tell_curve(run: Path, sizes: str, samples: int | None = None) -> None:
    """Cuts the stack of a run to sizes, `N,N,...`, and prints loss and accuracy on the test part.

    Sizes of the same stack and samples that were measured before are not measured again.

    Raises:
        UserError: there is no stack, no data, or a size is no number or too small.
    """
    limits = [int(text) for text in sizes.split(",") if text.strip().isdecimal()]
    if len(limits) != sizes.count(",") + 1:
        raise UserError(
            f"--bytes={sizes} should be numbers of bytes with commas between, such as 100000,200000"
        )
    path = stack_path(find_run(run))
    stack = read_stack(path)
    smallest, largest = stack.extent
    count = SAMPLES if samples is None else samples
    asked = {"samples": count, "stack": checksum(path)}
    metrics = measured(path.parent, "stack", asked) or {}
    prefixes = {limit: stack.prefix(limit) for limit in limits}
    new = {limit: part for limit, part in prefixes.items() if f"stack/{limit}/bytes" not in metrics}
    if new:
        held_out = Samples.held_out(data_of(path.parent), count)
        for limit, (file, blocks, used) in new.items():
            score = held_out.score(unpack(path, file, Reference())[0])
            found = {"bytes": used, "blocks": blocks, "loss": score.loss, "accuracy": score.accuracy}
            metrics |= {f"stack/{limit}/{key}": float(value) for key, value in found.items()}
        metrics = keep(path.parent, "stack", asked, metrics)
    report, table = Report(), Table(box=None, pad_edge=False)
    for heading in ("at most", "bytes", "blocks", "loss", "accuracy"):
        table.add_column(heading, justify="right")
    for limit, (_, blocks, used) in prefixes.items():
        loss, accuracy = (metrics.get(f"stack/{limit}/{key}", math.nan) for key in ("loss", "accuracy"))
        table.add_row(size(limit), f"{used:,}", str(blocks), f"{loss:.4f}", f"{accuracy:.4f}")
    report.table(table, [])
    report.line(f"{path_text(path)}: {size(smallest)} without a block, {size(largest)} with all of them")
