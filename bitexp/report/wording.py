"""A comparison in words: the answer, and what kind of comparison it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bitexp.common.format import counted, size
from bitexp.report.columns import cell_text, title
from bitexp.report.compare import BASELINE, Cell, Comparison, Row
from bitexp.report.equivalence import POWER, Verdict
from bitexp.report.mixtures import NAMED, about_mixtures
from bitexp.report.runs import Run

ALPHA = 0.05
"""The level at which a difference counts as one."""


def answer(comparison: Comparison) -> str:
    """The answer in words, of rows that may be compared alone: which is best, how sure, which is smallest."""
    if len(comparison.groups) > 1:
        return answer_of_groups(comparison)
    best = best_of(comparison.rows, comparison.sign)
    text = f"Best {comparison.metric}: {named(comparison, best)} with {mean_text(best.cell)}"
    if best.versus is not None:
        text += f", {best.versus.difference:+.4f} to {BASELINE} ({how_sure(best)})"
    sized = [row for row in comparison.rows if total(row)]
    if len({total(row) for row in sized}) > 1:
        on_disk = all(row.cell.file_bytes for row in sized)
        what, bytes_of = ("file", file_bytes) if on_disk else ("weights", total)
        small, large = (pick(sized, key=bytes_of) for pick in (min, max))
        times = f"{bytes_of(large) / bytes_of(small):.1f} times smaller than {named(comparison, large)}"
        text += f". Smallest {what}: {named(comparison, small)} with {size(bytes_of(small))}, {times}"
    return f"{text}."


def answer_of_groups(comparison: Comparison) -> str:
    """How often each precision is the best of its group; of groups with one row there is no best."""
    keys = comparison.axes.setting
    by = ", ".join(title(key, keys) for key in keys[:NAMED]) + ", ..." * (len(keys) > NAMED)
    text = f"Rows that differ in {by} are not compared with each other"
    contested = [group for group in comparison.groups if len({row.cell.precision for row in group}) > 1]
    wins = Counter(best_of(group, comparison.sign).cell.precision for group in contested)
    if not contested:
        return f"{text}, and none of the {len(comparison.groups)} groups has more than one precision."
    counts = ", ".join(f"{name} in {count}" for name, count in wins.most_common())
    groups = counted(len(contested), "group")
    return f"{text}. Best {comparison.metric} in {groups} of several precisions: {counts}."


def best_of(rows: Sequence[Row], sign: int) -> Row:
    """The row with the best mean."""
    return max(rows, key=lambda row: sign * row.cell.score.mean)


def how_sure(row: Row) -> str:
    """Whether a difference is more than what seeds alone make, and what it comes to within the margin."""
    test, words = row.versus, []
    assert test is not None
    if row.verdict is not None:
        words.append(verdict_text(row.verdict))
    if test.p_holm is not None:
        spread = "beyond" if test.p_holm < ALPHA else "within"
        sign = "" if test.p_holm < 0.001 else "= "
        words.append(f"{spread} the spread over seeds: p {sign}{p_text(test.p_holm)}")
    else:
        words.append("one common seed, so no test" if test.seeds < 2 else "the same difference on every seed")
    return "; ".join(words)


def verdict_text(verdict: Verdict) -> str:
    """A verdict with the margin that it is within."""
    return f"{verdict.word} within {verdict.margin:g}" if verdict.word == "equivalent" else verdict.word


def named(comparison: Comparison, row: Row) -> str:
    """A row in words: its precision, and what else tells it from others."""
    more = [f"{name} {cell_text(part)}" for name, part in particulars(comparison, row.cell)]
    return f"{row.cell.precision} ({', '.join(more)})" if more else row.cell.precision


def particulars(comparison: Comparison, cell: Cell) -> list[tuple[str, Any]]:
    """What tells a cell from others of its precision: titles and values, without what it has none of."""
    axes = comparison.axes
    keys, parts = (*axes.setting, *axes.variant), (*cell.setting, *cell.variant)
    return [(title(key, keys), part) for key, part in zip(keys, parts, strict=True) if part is not None]


def caption(comparison: Comparison) -> str:
    """What kind of comparison this is, in words, with what limits it."""
    first = f"Mean ± standard deviation over seeds; {what_rows_are(comparison)}."
    return " ".join([first, *about_tests(comparison), *about_baseline(comparison), *about_runs(comparison)])


def what_rows_are(comparison: Comparison) -> str:
    """How the setting of each row came about."""
    runs = runs_of_rows(comparison)
    if len(comparison.cells) > len(comparison.rows):
        itself = f"{comparison.metric} itself, which is optimistic"
        how = {
            True: "validation",
            False: f"{itself}, because nothing was held out",
            None: f"validation, or where nothing was held out by {itself}",
        }
        chosen = how[comparison.held_out]
        return f"each row is its best setting by {chosen}, among those with the most seeds"
    if all(run.flat.get("tuned") for run in runs):
        return "each precision at its tuned setting"
    if len({(run.flat.get("optimizer.lr"), run.flat.get("optimizer.weight_decay")) for run in runs}) > 1:
        return "each row at the setting it names"
    return "all precisions at one shared setting"


def about_tests(comparison: Comparison) -> Iterator[str]:
    """What is tested, and what so few seeds can show."""
    tests = [row.versus for row in comparison.rows if row.versus is not None]
    if any(test.p is not None for test in tests):
        yield "Differences are on common seeds, with a paired t test."
    yield from about_verdicts(comparison)
    if tests and all(test.seeds < 2 for test in tests):
        yield "A single seed cannot test a difference."
    elif tests and min(test.seeds for test in tests) < 5:
        yield "With so few seeds, only large differences can be detected."


def about_verdicts(comparison: Comparison) -> Iterator[str]:
    """By which margin, and how many seeds would decide what is undecided."""
    margin = comparison.margin
    judged = [row for row in comparison.rows if row.verdict is not None]
    if margin is None or not judged:
        return
    yield (
        f"Equivalent: the difference is less than {margin.value:g}, by two one-sided t tests; else better or "
        "worse, by the interval."
    )
    if margin.remark:
        yield margin.remark
    known = [
        f"{named(comparison, row)} {row.verdict.seeds_needed:,}"
        for row in judged
        if row.verdict is not None and row.verdict.word == "undecided" and row.verdict.seeds_needed
    ]
    if known:
        more = f" and {len(known) - NAMED} more rows" * (len(known) > NAMED)
        yield (
            "Undecided: were mean and spread as seen, so many seeds would decide with a power of "
            f"{POWER:.0%}: {', '.join(known[:NAMED])}{more}."
        )


def about_baseline(comparison: Comparison) -> Iterator[str]:
    """Which rows have something to be compared with."""
    rows, setting = comparison.rows, comparison.axes.setting
    if setting:
        keys = ", ".join(setting[:NAMED]) + f" and {len(setting) - NAMED} more keys" * (len(setting) > NAMED)
        yield f"Rows are compared with {BASELINE} only where {keys} agree."
    if not any(row.cell.precision == BASELINE for row in rows):
        yield f"There is no run of {BASELINE} to compare with."
    elif any(row.versus is None and row.cell.precision != BASELINE for row in rows):
        yield f"Rows without a difference have no {BASELINE} run with the same seeds, data and budget."


def about_runs(comparison: Comparison) -> Iterator[str]:
    """What the runs of a fair comparison would have in common, and these have not."""
    runs = runs_of_rows(comparison)
    if len({run.result.get("steps") for run in runs}) > 1 and not comparison.axes.setting:
        yield "The runs did not all take the same number of steps."
    names = [named(comparison, row) for row in comparison.rows]
    yield from about_mixtures(comparison, names)
    yield from about_code(comparison, names)


def about_code(comparison: Comparison, names: Sequence[str]) -> Iterator[str]:
    """Which rows are one thing in several versions of its code, where any are, and which is the newest."""
    keys = [k for k in (*comparison.axes.setting, *comparison.axes.variant) if k.endswith(".code")]
    for key in keys:
        started = {
            name: max(str(run.attempt.get("started", "")) for run in row.cell.runs)
            for name, row in zip(names, comparison.rows, strict=True)
            if key in row.cell.runs[0].flat
        }
        if started:
            yield (
                f"{key} is the hash of code that is edited or not bitexp's own: a row for each, the "
                f"newest is {max(started, key=lambda name: started[name])}."
            )


def runs_of_rows(comparison: Comparison) -> list[Run]:
    """The runs behind the rows, without those of settings that were not chosen."""
    return [run for row in comparison.rows for run in row.cell.runs]


def total(row: Row) -> float:
    """Bytes of all tensors of the packed file, without its header."""
    return row.cell.metric("size/total_bytes") or 0.0


def file_bytes(row: Row) -> float:
    """Bytes of the packed file on disk."""
    return row.cell.file_bytes or 0.0


def mean_text(cell: Cell) -> str:
    """Mean and standard deviation over seeds; one value stands alone."""
    score = cell.score
    return f"{score.mean:.4f}" if score.std is None else f"{score.mean:.4f} ± {score.std:.4f}"


def p_text(p: float) -> str:
    """A p value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
