"""The tables of a report, each number once as text for people and once as a value for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bitexp.console import amount, size
from bitexp.report.axes import DATA
from bitexp.report.compare import BASELINE, Cell, Comparison, Row
from bitexp.report.energy import NODE, PICOJOULES, shown
from bitexp.report.runs import Run

ALPHA = 0.05
"""The level at which a difference counts as one."""
LR_DECAY = "lr x decay"  # summed over the steps: what a weight decay comes to


SHORT, LONG, FILE = 0, 1, 2


@dataclass(frozen=True)
class Column:
    """A column: its heading, its name for programs, and where its text and its value come from."""

    title: str
    key: str
    text: Callable[[Any], str]
    value: Callable[[Any], Any]
    level: int = SHORT
    """Where it is shown: SHORT tables have fewer columns than LONG ones, files have all."""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of text with their values; `links` leads from a row to the runs behind it."""

    title: str
    columns: tuple[Column, ...]
    items: tuple[Any, ...]
    caption: str = ""
    links: Callable[[Any], Sequence[Run]] = field(default=lambda item: ())

    def shown(self, level: int = LONG) -> Table:
        """The same with the columns up to a level, and without those that are empty."""
        filled = [
            column
            for column in self.columns
            if column.level <= level and any(column.text(item) for item in self.items)
        ]
        return replace(self, columns=tuple(filled))

    def texts(self) -> list[list[str]]:
        """All cells as text."""
        return [[column.text(item) for column in self.columns] for item in self.items]

    def values(self) -> list[dict[str, Any]]:
        """All cells as values by the name of their column."""
        return [{column.key: column.value(item) for column in self.columns} for item in self.items]


def numeric(title: str, key: str, value: Callable[[Any], Any], form: Any, level: int = SHORT) -> Column:
    """A column of numbers; None is an empty cell. `form` is a format or a function."""
    write = form if callable(form) else (lambda number: format(number, form))
    return Column(title, key, lambda item: "" if (v := value(item)) is None else write(v), value, level)


def word(title: str, key: str, value: Callable[[Any], Any]) -> Column:
    """A column of words."""
    return Column(title, key, lambda item: plain(value(item)), value, number=False)


def plain(value: Any) -> str:
    """A value of a config for people: as one would type it, to four digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def p_text(p: float) -> str:
    """A p value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_text(cell: Cell) -> str:
    """Mean and standard deviation over seeds; one value stands alone."""
    score = cell.score
    return f"{score.mean:.4f}" if score.std is None else f"{score.mean:.4f} ± {score.std:.4f}"


def interval(low: float | None, high: float | None, form: str) -> str:
    """A confidence interval; nothing where there is none."""
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def shared(values: Sequence[Any]) -> str:
    """The one value that all runs of a row have."""
    found = {f"{value:.3g}" if isinstance(value, float) else plain(value) for value in values}
    return found.pop() if len(found) == 1 else "mixed"


def axis_columns(keys: Sequence[str], part: Callable[[Any], Sequence[Any]]) -> list[Column]:
    """A column for each axis of a setting."""
    return [
        word(title(key, keys), key, lambda item, i=i: part(item)[i])  # type: ignore[misc]
        for i, key in enumerate(keys)
    ]


def title(key: str, keys: Sequence[str]) -> str:
    """A key's last word for people, the whole key where two end alike."""
    last = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in keys) == 1
    return "data" if key == DATA else last.replace("_", " ") if alone else key


def precision_table(found: Comparison) -> Table:
    """The answer: a row per precision (and network, data, budget), at its chosen setting."""
    axes, rows = found.axes, found.rows
    own = {"optimizer.lr": "lr", "optimizer.weight_decay": "weight decay"}
    columns = [
        word("precision", "precision", lambda row: row.cell.precision),
        *axis_columns(axes.apart, lambda row: row.cell.apart),
        *axis_columns(axes.variant, lambda row: row.cell.variant),
        *score_columns(found.metric),
        *axis_columns(axes.tuned, lambda row: row.cell.tuned),
        *(setting_column(title, key) for key, title in own.items() if key not in axes.tuned),
    ]
    if any(row.cell.result("lr_decay_sum") for row in rows):
        columns.append(numeric(LR_DECAY, "lr_decay_sum", lambda row: row.cell.result("lr_decay_sum"), ".3g"))
    if any(len(row.cells) > 1 for row in rows):
        columns.append(numeric("settings", "settings", lambda row: len(row.cells), "d"))
        columns.append(numeric(f"within {found.tolerance:.2g}", "robust", lambda row: row.robust, ".0%"))
    if axes.apart:
        columns.append(numeric("parameters", "parameters", parameters, amount))
    unit = str(rows[0].cell.runs[0].result.get("unit", "inputs")).removesuffix("s")
    return Table("Precisions", (*columns, *cost_columns(unit)), rows, caption(found), members)


def score_columns(metric: str) -> list[Column]:
    """The metric over seeds, and its difference to the baseline."""
    return [
        Column(metric, metric, lambda row: mean_text(row.cell), lambda row: row.cell.score.mean),
        numeric("std", "std", lambda row: row.cell.score.std, ".4f", FILE),
        Column(
            "95 % interval",
            "low",
            lambda row: interval(row.cell.score.low, row.cell.score.high, ".4f"),
            lambda row: row.cell.score.low,
            LONG,
        ),
        numeric("high", "high", lambda row: row.cell.score.high, ".4f", FILE),
        numeric("vs full", "difference", lambda row: of(row, "difference"), "+.4f"),
        Column(
            "its interval",
            "difference_low",
            lambda row: interval(of(row, "low"), of(row, "high"), "+.4f"),
            lambda row: of(row, "low"),
            LONG,
        ),
        numeric("high", "difference_high", lambda row: of(row, "high"), "+.4f", FILE),
        numeric("effect d", "effect", lambda row: of(row, "effect"), "+.2f", LONG),
        numeric("p", "p", lambda row: of(row, "p"), p_text, FILE),
        numeric("p (Holm)", "p_holm", lambda row: of(row, "p_holm"), p_text),
        numeric("seeds", "seeds", lambda row: row.cell.score.seeds, "d"),
    ]


def cost_columns(unit: str) -> list[Column]:
    """Bits, bytes, energy, memory and time."""

    def joules(node: str) -> Column:
        level = SHORT if node == NODE else FILE
        title = f"energy per {unit}, {node}"
        return numeric(title, f"joules {node}", lambda row: row.cell.energy(node), shown, level)

    return [
        numeric("bits per weight", "bits_per_weight", lambda row: row.cell.bits, ".2f"),
        numeric("body", "body_bytes", lambda row: row.cell.metric("size/body_bytes"), size),
        numeric("total", "total_bytes", lambda row: row.cell.metric("size/total_bytes"), size),
        *map(joules, PICOJOULES),
        numeric(
            "memory per step", "saved_bytes", lambda row: row.cell.metric("memory/saved_bytes"), size, LONG
        ),
        numeric("ms per step", "step_ms", lambda row: row.cell.result("step_ms"), ".1f"),
    ]


def setting_column(title: str, key: str) -> Column:
    """The value of a key that all runs of a row share."""

    def text(row: Row) -> str:
        return shared(row.cell.config(key))

    return Column(title, key, text, text)


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


def of(row: Row, name: str) -> Any:
    """Part of a row's difference to the baseline; None where there is none."""
    return None if row.versus is None else getattr(row.versus, name)


def members(item: Row | Cell) -> Sequence[Run]:
    """The runs behind a row or a cell."""
    return item.cell.runs if isinstance(item, Row) else item.runs


def setting_table(found: Comparison) -> Table:
    """Every setting of every precision, whether chosen or not."""
    axes = found.axes
    validated = found.metric.replace("test/", "val/")
    columns = [
        word("precision", "precision", lambda cell: cell.precision),
        *(column for keys, name in ((axes.apart, "apart"), (axes.variant, "variant"), (axes.tuned, "tuned"))
          for column in axis_columns(keys, lambda cell, name=name: getattr(cell, name))),  # type: ignore[misc]
        numeric(validated, validated, lambda cell: cell.validated, ".4f"),
        Column(found.metric, found.metric, mean_text, lambda cell: cell.score.mean),
        numeric("seeds", "seeds", lambda cell: cell.score.seeds, "d"),
        numeric(LR_DECAY, "lr_decay_sum", lambda cell: cell.result("lr_decay_sum"), ".3g"),
    ]  # fmt: skip
    return Table("All settings", tuple(columns), tuple(found.cells), links=members)


def bytes_table(found: Comparison) -> Table | None:
    """The best of each precision within the bytes of each file; None where all come in one size."""
    rows = [row for row in found.rows if row.cell.metric("size/total_bytes") is not None]
    names = list(dict.fromkeys(row.cell.precision for row in rows))
    if all(len({total(row) for row in rows if row.cell.precision == name}) < 2 for name in names):
        return None

    def column(name: str) -> Column:
        def best(budget: float) -> Row | None:
            small = [row for row in rows if row.cell.precision == name and total(row) <= budget]
            return max(small, key=lambda row: found.sign * row.cell.score.mean, default=None)

        return Column(
            name,
            name,
            lambda budget: "" if (row := best(budget)) is None else mean_text(row.cell),
            lambda budget: None if (row := best(budget)) is None else row.cell.score.mean,
        )

    columns = (numeric("bytes at most", "bytes", lambda budget: budget, size), *map(column, names))
    budgets = tuple(sorted({total(row) for row in rows}))
    return Table("Equal bytes", columns, budgets, f"{found.metric} of the best network that fits.")


def parameters(row: Row) -> float | None:
    """All weights of the network, quantized or not."""
    return row.cell.metric("size/total_weights")


def total(row: Row) -> float:
    """Bytes of the whole packed file."""
    return row.cell.metric("size/total_bytes") or 0.0


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
