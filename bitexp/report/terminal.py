"""The end of a multirun on a terminal: the report's own table of precisions, and what did not end well."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from bitexp.common.console import Report
from bitexp.common.format import counted, path_text
from bitexp.common.narrow import fits
from bitexp.report.columns import SHORT, Table, one_line
from bitexp.report.compare import Comparison, compare
from bitexp.report.runs import Run, job_records, job_run, read_run, words_of
from bitexp.report.tables import LR_DECAY, precision_table, setting_table
from bitexp.report.wording import answer

SCREEN = 100
"""Rows of a table that are printed."""
LISTED = 24
"""Up to so many settings are listed one by one; the report has all of them."""


OPTIONAL = (
    "ms per step", "bits per weight", "weight decay", LR_DECAY, "settings", "parameters", "lr", "seeds",
    "body", "p (Holm)", "total",
)  # fmt: skip
"""Columns that a narrow screen does without, the first ones first."""
REST = " or in the report"


ALIKE = 4
"""Jobs that are named for one reason."""


def summarize(sweep: Path, report: Report, margin: float | None = None) -> None:
    """Reads the index of a multirun and the runs it names, and prints what they say together.

    Args:
        margin: `report.margin` of the multirun, which is told where runs began with another.
    """
    jobs = [job for job in job_records(sweep) if "status" in job]
    finished = [job for job in jobs if job["status"] == "finished"]
    read = [read_run(place) for job in jobs if (place := job_run(sweep, job)) is not None]
    runs = [run for run in read if isinstance(run, Run)]  # those that diverged count, too
    comparisons = compare(runs)
    print_comparisons(report, comparisons)
    if margin is not None and any(c.margin is None or c.margin.value != margin for c in comparisons):
        report.sentences(
            f"report.margin={margin:g} was set after these runs. Verdicts keep the margin that they began "
            "with; `python -m bitexp report --margin` takes another."
        )
    if comparisons:
        report.line(f"Plots and all settings: python -m bitexp report {shlex.quote(os.path.relpath(sweep))}")
    trained = sum(bool(job.get("trained")) for job in finished)
    before, missing = len(finished) - trained, len(jobs) - len(finished)
    report.sentences(
        f"{counted(len(jobs), 'job')}: {trained} trained, {before} finished before, {missing} not finished. "
        f"Index: {path_text(sweep)}"
    )
    for line in unfinished_jobs(jobs):
        report.sentences(f"  {line}")


def unfinished_jobs(jobs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What did not end well: a line for each reason, with the words that tell its jobs from the others."""
    words = [words_of(job) for job in jobs]
    common = set.intersection(*map(set, words)) if len(jobs) > 1 else set()
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for job, own in zip(jobs, words, strict=True):
        if job["status"] != "finished":
            what = ", ".join(word for word in own if word not in common) or ", ".join(own)
            where = f" ({job['run']})" if job.get("run") else ""
            alike.setdefault((str(job["status"]), str(job.get("reason"))), []).append((what, where))
    for (status, reason), named in alike.items():
        more = f" and {len(named) - ALIKE} more" if len(named) > ALIKE else ""
        yield f"{status}: {'; '.join(what for what, _ in named[:ALIKE])}{more}: {reason}{named[0][1]}"


def print_comparisons(report: Report, comparisons: Sequence[Comparison]) -> None:
    """Prints the short table of each comparison; few settings are listed, too."""
    for comparison in comparisons:
        report.line()
        if len(comparison.rows) < len(comparison.cells) <= LISTED:
            settings = setting_table(comparison).up_to(SHORT)
            report.table(rich_table(settings), optional(settings), REST)
        table = precision_table(comparison).up_to(SHORT).first(SCREEN, "the report")
        if not fits(rich_table(table), report.console):
            table = table.condensed()
        report.table(rich_table(table), optional(table), REST)
        report.sentences(one_line(f"{answer(comparison)} {table.caption}"))


def optional(table: Table) -> list[str]:
    """The columns that a narrow screen does without; what tells rows apart is none of them."""
    kept = [column.title for column in table.columns if column.names]
    energy = [column.title for column in table.columns if column.title.startswith("energy")]
    return [title for title in (*energy, *OPTIONAL) if title not in kept]


def rich_table(table: Table) -> RichTable:
    """A table of the report for a terminal."""
    out = RichTable(box=box.SIMPLE_HEAD)
    for column in table.columns:
        out.add_column(escape(one_line(column.title)), justify="right" if column.number else "left")
    for row in table.texts():
        out.add_row(*map(escape, row))
    return out
