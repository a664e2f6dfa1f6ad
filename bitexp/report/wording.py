"""A comparison in words: the answer, and what kind of comparison it is."""

from __future__ import annotations

from bitexp.common.format import size
from bitexp.report.columns import plain, title
from bitexp.report.compare import BASELINE, Cell, Comparison, Row

ALPHA = 0.05
"""The level at which a difference counts as one."""


def verdict(found: Comparison) -> str:
    """The answer in words: which row is best, how sure that is, and which is smallest."""
    best = max(found.rows, key=lambda row: found.sign * row.cell.score.mean)
    said = f"Best {found.metric}: {named(found, best)} with {mean_text(best.cell)}"
    test = best.versus
    if test is not None:
        sure = "one common seed, so no test" if test.seeds < 2 else "the same on every seed"
        if test.p_holm is not None:
            clear = "beyond what seeds do" if test.p_holm < ALPHA else "within what seeds do"
            sure = f"{clear}: p {p_text(test.p_holm)}".replace("p 0", "p = 0").replace("p 1", "p = 1")
        said += f", {test.difference:+.4f} to {BASELINE} ({sure})"
    sized = [row for row in found.rows if total(row)]
    if len({total(row) for row in sized}) > 1:
        small, large = (pick(sized, key=total) for pick in (min, max))
        ratio = total(large) / total(small)
        said += (
            f". Smallest file: {named(found, small)} with {size(total(small))}, {ratio:.1f} times less than "
        )
        said += f"{named(found, large)}"
    return f"{said}."


def named(found: Comparison, row: Row) -> str:
    """A row in words: its precision, and what else tells it from others."""
    axes, cell = found.axes, row.cell
    keys, parts = (*axes.apart, *axes.variant), (*cell.apart, *cell.variant)
    more = [f"{title(key, keys)} {plain(part)}" for key, part in zip(keys, parts, strict=True)]
    return f"{cell.precision} ({', '.join(more)})" if more else cell.precision


def caption(found: Comparison) -> str:
    """What kind of comparison this is, in words, with what limits it."""
    rows, axes = found.rows, found.axes
    runs = [run for row in rows for run in row.cell.runs]
    if len(found.cells) > len(rows):
        how = (
            "validation"
            if found.held_out
            else f"{found.metric} itself, which flatters it: nothing was held out"
        )
        what = f"each row is its best setting by {how}, among those with the most seeds"
    elif all(run.flat.get("tuned") for run in runs):
        what = "each precision at its tuned setting"
    elif len({(run.flat.get("optimizer.lr"), run.flat.get("optimizer.weight_decay")) for run in runs}) > 1:
        what = "each row at the setting it names"
    else:
        what = "all precisions at one shared setting"
    said = [f"Mean ± standard deviation over seeds; {what}."]
    tests = [row.versus for row in rows if row.versus is not None]
    if any(test.p is not None for test in tests):
        said.append("Differences are on common seeds, with a paired t test.")
    if tests and all(test.seeds < 2 for test in tests):
        said.append("One seed is no test of a difference.")
    elif tests and min(test.seeds for test in tests) < 5:
        said.append("With so few seeds only large differences show.")
    if axes.apart:
        said.append(f"Rows are compared with {BASELINE} only where {', '.join(axes.apart)} agree.")
    if not any(row.cell.precision == BASELINE for row in rows):
        said.append(f"There is no run of {BASELINE} to compare with.")
    elif any(row.versus is None and row.cell.precision != BASELINE for row in rows):
        said.append(f"A row without a difference has no {BASELINE} run on the same seeds, data and budget.")
    if len({run.result.get("steps") for run in runs}) > 1 and not axes.apart:
        said.append("The runs did not all take the same number of steps.")
    if len({run.result.get("source") for run in runs}) > 1:
        said.append("The runs were made with different versions of bitexp's source.")
    return " ".join(said)


def total(row: Row) -> float:
    """Bytes of the whole packed file."""
    return row.cell.metric("size/total_bytes") or 0.0


def mean_text(cell: Cell) -> str:
    """Mean and standard deviation over seeds; one value stands alone."""
    score = cell.score
    return f"{score.mean:.4f}" if score.std is None else f"{score.mean:.4f} ± {score.std:.4f}"


def p_text(p: float) -> str:
    """A p value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
