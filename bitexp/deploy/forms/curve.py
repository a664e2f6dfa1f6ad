"""The quality of a stack at some sizes, as a table."""

from __future__ import annotations

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

SAMPLES = 2000
"""What is looked at unless more or less is asked for."""


def tell_curve(run: Path, sizes: str, samples: int | None = None) -> None:
    """Cuts the stack of a run to sizes, `N,N,...`, and prints loss and accuracy on the test part.

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
    held_out = Samples.held_out(data_of(path.parent), SAMPLES if samples is None else samples)
    report, table = Report(), Table(box=None, pad_edge=False)
    for heading in ("at most", "bytes", "blocks", "loss", "accuracy"):
        table.add_column(heading, justify="right")
    for limit in limits:
        file, blocks, used = stack.prefix(limit)
        score = held_out.score(unpack(path, file, Reference())[0])
        cells = (size(limit), f"{used:,}", str(blocks), f"{score.loss:.4f}", f"{score.accuracy:.4f}")
        table.add_row(*cells)
    report.table(table, [])
    report.line(f"{path_text(path)}: {size(smallest)} without a block, {size(largest)} with all of them")
