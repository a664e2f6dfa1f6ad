"""What runs were made from: who started from whom, who taught whom, and what the whole chain took."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from bitexp.common.format import duration, value_text
from bitexp.report.columns import Table, numeric, word
from bitexp.report.compare import Comparison, Row
from bitexp.report.runs import Run
from bitexp.track.folder import is_number
from bitexp.track.lineage import known


def lineage_table(comparison: Comparison) -> Table | None:
    """Where the rows come from, beside their own cost that of all runs behind them; None where none do."""
    rows = tuple(row for row in comparison.rows if any(behind(run) for run in row.cell.runs))
    if not rows:
        return None
    columns = (
        word("precision", "precision", lambda row: row.cell.precision),
        word("variant", "variant", lambda row: variant(comparison, row)),
        word("started from", "start", lambda row: named(row, "start")),
        word("taught by", "teacher", lambda row: named(row, "teacher")),
        numeric("steps", "steps", lambda row: median(row, own_steps), ",.0f"),
        numeric("of all", "all_steps", lambda row: median(row, all_steps), ",.0f"),
        numeric("time", "seconds", lambda row: median(row, own_seconds), duration),
        numeric("of all", "all_seconds", lambda row: median(row, all_seconds), duration),
    )
    caption = (
        "What runs were made from. Steps and time are those of the row's own runs, and together with all "
        "runs behind them, each counted once; medians over seeds."
    )
    return Table("Lineage", columns, rows, caption, lambda row: row.cell.runs)


def variant(comparison: Comparison, row: Row) -> str:
    """What else tells a row from others of its precision."""
    keys = comparison.axes.variant
    pairs = zip(keys, row.cell.variant, strict=True)
    return ", ".join(
        f"{key.removesuffix('.name').rpartition('.')[2]} {value_text(value, 6)}"
        for key, value in pairs
        if value
    )


def behind(run: Run) -> bool:
    """Whether a run has begun with, or learned from, anything else."""
    return any(isinstance(run.attempt.get(key), Mapping) for key in ("start", "teacher"))


def named(row: Row, key: str) -> str:
    """The sources of a row's runs, each kind once: the precision of a run, the path of others."""
    names: dict[str, None] = {}
    for run in row.cell.runs:
        record = run.attempt.get(key)
        if isinstance(record, Mapping):
            entries = {entry["run"].rpartition("/")[2]: entry for entry in known(run.attempt)}
            entry = entries.get(str(record.get("identity")))
            names[entry["quantizer"] if entry else str(record.get("path"))] = None
    return ", ".join(names)


def own_steps(run: Run) -> float | None:
    """Steps that a run took."""
    steps = run.result.get("steps")
    return steps if is_number(steps) else None


def own_seconds(run: Run) -> float | None:
    """Seconds that a run took."""
    seconds = run.result.get("seconds")
    return seconds if is_number(seconds) else None


def all_steps(run: Run) -> float | None:
    """Steps of a run and of all behind it."""
    own = own_steps(run)
    return None if own is None else own + sum(entry["steps"] for entry in known(run.attempt))


def all_seconds(run: Run) -> float | None:
    """Seconds of a run and of all behind it."""
    own = own_seconds(run)
    return None if own is None else own + sum(entry["seconds"] for entry in known(run.attempt))


def median(row: Row, number: Callable[[Run], float | None]) -> float | None:
    """Over the seeds of a row."""
    numbers: Sequence[float] = [n for run in row.cell.runs if (n := number(run)) is not None]
    return statistics.median(numbers) if numbers else None
