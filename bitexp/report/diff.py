"""What two runs differ in: config, data, code, environment, metrics, curves and files.

    python -m bitexp report diff outputs/vit_ternary/ID outputs/vit_ternary/OTHER

A folder with a single run stands for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.program import run_program

if TYPE_CHECKING:
    from bitexp.report.runs import Run

NAMED = 4
"""Runs that are named where one has to be chosen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, metavar="RUN", help="the folder of a run")


def run(options: argparse.Namespace) -> None:
    """Prints what differs, part by part, and which parts agree.

    Raises:
        UserError: a path is no run.
    """
    from bitexp.report.columns import one_line
    from bitexp.report.differences import differences, table_of
    from bitexp.report.terminal import rich_table

    report = Report()
    first, second = (the_run(path) for path in (options.first, options.second))
    names = (first.id, second.id) if first.id != second.id else ("first", "second")
    for one, name in ((first, names[0]), (second, names[1])):
        what = f"{name}: {one.name} · {one.precision} · seed {one.seed} · {one.status} · {one.path}"
        report.line(one_line(what))
    found = differences(first, second)
    for part, unlike in found.items():
        if unlike:
            report.table(rich_table(table_of(part, unlike, names)))
    same = [part for part, unlike in found.items() if not unlike]
    report.line(f"The same: {', '.join(same) or 'nothing'}.")


def the_run(path: Path) -> Run:
    """The run in a folder.

    Raises:
        UserError: there is none, or there are several.
    """
    from bitexp.report.runs import Problem, places, read_run

    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: name the folder of a run, such as outputs/vit_ternary/ID")
    inside = list(islice(places(path, []), NAMED + 1))
    if len(inside) != 1:
        names = ", ".join(map(str, inside[:NAMED])) + ", ..." * (len(inside) > NAMED)
        raise UserError(f"{path} holds {'several runs: name one of ' + names if inside else 'no run'}")
    read = read_run(inside[0])
    if isinstance(read, Problem):
        raise UserError(f"{read.path}: {read.reason}")
    return read


def main(words: Sequence[str]) -> int:
    """`python -m bitexp report diff`. Exit codes: 0 said what differs, 2 bad input."""
    return run_program("report diff", __doc__, add_arguments, run, words)
