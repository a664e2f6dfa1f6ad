"""Which rows of a table mix versions or machines, or differ in them, and what repeats the older runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bitexp.report.columns import Column, Table, word
from bitexp.report.compare import BASELINE, Comparison, Row
from bitexp.report.conditions import CONDITIONS, VERSIONS
from bitexp.report.runs import Run
from bitexp.track.provenance import command_of

NAMED = 4
"""Rows or keys that a sentence names; the table has all."""


def values(runs: Iterable[Run], condition: str) -> list[str]:
    """The values of a condition over runs, each once."""
    return list(dict.fromkeys(value for run in runs for value in run.conditions.get(condition, ())))


def mixed(row: Row) -> list[str]:
    """The conditions that the runs of a row do not share."""
    return [name for name in CONDITIONS if len(values(row.cell.runs, name)) > 1]


def differing(comparison: Comparison, row: Row) -> list[str]:
    """The conditions in which a row differs from the baseline that it is compared with."""
    bases = (other.cell for other in comparison.rows if other.cell.precision == BASELINE)
    base = next((cell for cell in bases if cell.setting == row.cell.setting), None)
    if row.versus is None or base is None:
        return []
    pairs = {name: [set(values(runs, name)) for runs in (row.cell.runs, base.runs)] for name in CONDITIONS}
    del pairs["kernel"]  # full precision has no codes to multiply
    return [name for name, (ours, full) in pairs.items() if ours and full and ours != full]


def mixture_column() -> Column:
    """What the seeds of a row mix, by word; the column is shown where any row does."""

    def text(row: Row) -> str:
        return ", ".join(mixed(row))

    return Column("seeds mix", "mixes", text, text, number=False)


def about_mixtures(comparison: Comparison, names: Sequence[str]) -> Iterator[str]:
    """Sentences about spreads and differences that are not of seeds and precisions alone.

    Args:
        names: of the rows, in their order.
    """
    rows, found = comparison.rows, set[str]()
    for condition, noun in CONDITIONS.items():
        within = [place for place, row in enumerate(rows) if condition in mixed(row)]
        if within:
            found.add(condition)
            which = listed(first([names[place] for place in within]))
            what = listed(values([run for place in within for run in rows[place].cell.runs], condition))
            yield f"The seeds of {which} mix {noun} ({what}): the spread is not of seeds alone."
        between = [place for place, row in enumerate(rows) if condition in differing(comparison, row)]
        if between:
            found.add(condition)
            which = listed([*first([names[place] for place in between]), BASELINE])
            yield f"{which} have different {noun}: the difference is not of precision alone."
    if found & set(VERSIONS):
        yield "The same commands with rerun=older repeat what older versions have made."


def older_runs(comparison: Comparison) -> Table | None:
    """The runs that older versions have made, with what repeats each; None where no row mixes versions."""
    rows = comparison.rows
    if not any({*mixed(row), *differing(comparison, row)} & set(VERSIONS) for row in rows):
        return None
    runs = [run for row in rows for run in row.cell.runs]
    newest = max(runs, key=lambda run: str(run.attempt.get("started", "")))
    now = {name: newest.conditions.get(name, ())[-1:] for name in VERSIONS}
    older = [run for run in runs if any(run.conditions.get(name) != now[name] for name in VERSIONS)]

    def made(condition: str) -> Column:
        return word(condition, condition, lambda run: ", ".join(run.conditions.get(condition, ())))

    columns = (
        word("precision", "precision", lambda run: run.precision),
        word("seed", "seed", lambda run: run.seed),
        word("started", "started", lambda run: run.attempt.get("started")),
        *map(made, VERSIONS),
        word("repeat it with", "command", repetition),
    )
    caption = "What the newest versions have not made. A version of bitexp is the hash of its source."
    return Table("Older runs", columns, tuple(older), caption, lambda run: (run,))


def repetition(run: Run) -> str:
    """What makes a run anew where another version has made it."""
    return command_of([*(word for word in run.overrides if not word.startswith("rerun=")), "rerun=older"])


def first(rows: Sequence[str]) -> list[str]:
    """The names of rows, of many the first and how many more there are."""
    return [*rows[:NAMED], f"{len(rows) - NAMED} more rows"] if len(rows) > NAMED + 1 else [*rows]


def listed(words: Sequence[str]) -> str:
    """Words in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
