"""Measurements of finished runs, run by run: what is known is not measured again, and a table ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import path_text
from bitexp.deploy.engine_table import data_of
from bitexp.track.folder import RunFolder
from bitexp.track.measurements import keep, measured


def measure_runs(
    folders: Sequence[Path],
    name: str,
    asked: Mapping[str, Any],
    measure: Callable[[Path, Any, Callable[[str], None]], Mapping[str, float]],
    rows: Callable[[Mapping[str, float]], list[dict[str, str]]],
) -> None:
    """Measures what was not measured yet of each run, run by run, and prints a table of all.

    Of several runs those that cannot be measured are left out, with the reason.

    Args:
        name: of the measurement. asked: what it depends on.
        measure: gets the folder, its data, and where to tell of progress. rows: of the table, by heading.

    Raises:
        UserError: a single run cannot be measured.
    """
    report, lines = Report(), list[dict[str, str]]()
    for folder in folders:
        result = RunFolder(folder).result() or {}
        label = f"{result.get('quantizer', '?')}, seed {result.get('seed', '?')}"
        try:
            if not RunFolder(folder).packed.exists():
                raise UserError(f"there is no packed file in {folder}: the run has not finished")
            metrics = measured(folder, name, asked)
            known = " · measured before" if metrics is not None else ""
            report.line(f"{path_text(folder)} · {label}{known}")
            if metrics is None:
                metrics = keep(folder, name, asked, measure(folder, data_of(folder), report.detail))
        except UserError as error:
            if len(folders) == 1:
                raise
            report.sentences(f"left out: {error}")
            continue
        lines += [{"run": folder.name, "precision": label, **row} for row in rows(metrics)]
    table = Table(box=None, pad_edge=False)
    headings = list(dict.fromkeys(heading for line in lines for heading in line))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("run", "precision", "bits of") else "right")
    for line in lines:
        table.add_row(*(line.get(heading, "") for heading in headings))
    report.table(table, [])
    where = " ".join(dict.fromkeys(path_text(folder.parent) for folder in folders))
    report.line(f"Beside all else that is known of the runs: python -m bitexp report {where}")
