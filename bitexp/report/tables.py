"""The tables of a comparison: precisions, settings, and the best at equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bitexp.common.format import amount, energy_text, size
from bitexp.report.columns import FILE, LONG, SHORT, Column, Table, axis_columns, cell_text, numeric, word
from bitexp.report.compare import Cell, Comparison, Row
from bitexp.report.energy import MEASURED, NODE, PICOJOULES
from bitexp.report.mixtures import mixture_column
from bitexp.report.runs import Run
from bitexp.report.wording import best_of, caption, mean_text, p_text, total
from bitexp.track.folder import validation_of

LR_DECAY = "lr x decay"  # summed over the steps: what a weight decay comes to


def precision_table(comparison: Comparison) -> Table:
    """The answer: a row per precision (and network, data, budget), at its chosen setting."""
    axes, rows = comparison.axes, comparison.rows
    own = {"optimizer.lr": "lr", "optimizer.weight_decay": "weight decay"}
    columns = [
        replace(word("precision", "precision", lambda row: row.cell.precision), names=True),
        *axis_columns(axes.setting, lambda row: row.cell.setting, rows),
        *axis_columns(axes.variant, lambda row: row.cell.variant, rows),
        *score_columns(comparison.metric),
        *(
            replace(column, names=False)
            for column in axis_columns(axes.hyperparameters, lambda row: row.cell.hyperparameters, rows)
        ),
        *(setting_column(title, key) for key, title in own.items() if key not in axes.hyperparameters),
    ]
    if any(row.cell.result("lr_decay_sum") for row in rows):
        decay = numeric(LR_DECAY, "lr_decay_sum", lambda row: row.cell.result("lr_decay_sum"), ".3g")
        columns.append(replace(decay, shared=True))
    if any(row.settings > 1 for row in rows):
        columns.append(numeric("settings", "settings", lambda row: row.settings, "d"))
        columns.append(numeric(f"within {comparison.tolerance:.2g}", "robust", lambda row: row.robust, ".0%"))
    columns.append(mixture_column())
    if axes.setting:
        columns.append(replace(numeric("parameters", "parameters", parameters, amount), shared=True))
    unit = str(rows[0].cell.runs[0].result.get("unit", "inputs")).removesuffix("s")
    return Table("Precisions", (*columns, *cost_columns(unit)), rows, caption(comparison), members)


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
        numeric("effect d", "effect", lambda row: of(row, "effect"), "+.2f", FILE),
        numeric("p", "p", lambda row: of(row, "p"), p_text, FILE),
        numeric("p (Holm)", "p_holm", lambda row: of(row, "p_holm"), p_text),
        word("verdict", "verdict", lambda row: judged(row, "word")),
        numeric("margin", "margin", lambda row: judged(row, "margin"), "g", FILE),
        *verdict_columns(lambda row: row, FILE),
        replace(numeric("seeds", "seeds", lambda row: row.cell.score.seeds, "d"), shared=True),
    ]


def cost_columns(unit: str) -> list[Column]:
    """Bits, bytes, energy, memory and time."""

    def joules(node: str) -> Column:
        level = SHORT if node == NODE else FILE
        title = f"energy per {unit}, {node}"
        return numeric(title, f"joules {node}", lambda row: row.cell.energy(node), energy_text, level)

    return [
        numeric("bits per weight", "bits_per_weight", lambda row: row.cell.bits, ".2f"),
        numeric("body", "body_bytes", lambda row: row.cell.metric("size/body_bytes"), size),
        numeric("total", "total_bytes", lambda row: row.cell.metric("size/total_bytes"), size),
        numeric("file", "file_bytes", lambda row: row.cell.file_bytes, size, LONG),
        *map(joules, PICOJOULES),
        Column(
            f"energy per {unit}, measured",
            "joules measured",
            lambda row: "not measured" if (j := row.cell.metric(MEASURED)) is None else energy_text(j),
            lambda row: row.cell.metric(MEASURED),
            LONG,
            shared=True,
        ),
        numeric(
            "memory per step", "saved_bytes", lambda row: row.cell.metric("memory/saved_bytes"), size, LONG
        ),
        numeric("ms per step", "step_ms", lambda row: row.cell.result("step_ms"), ".1f"),
    ]


def setting_column(title: str, key: str) -> Column:
    """The value of a key that all runs of a row share."""

    def text(row: Row) -> str:
        return shared(row.cell.config(key))

    return Column(title, key, text, text, shared=True)


def setting_table(comparison: Comparison) -> Table:
    """Every setting of every precision, whether chosen or not."""
    axes = comparison.axes
    validated = validation_of(comparison.metric)
    columns = [
        replace(word("precision", "precision", lambda cell: cell.precision), names=True),
        *axis_columns(axes.setting, lambda cell: cell.setting, comparison.cells),
        *axis_columns(axes.variant, lambda cell: cell.variant, comparison.cells),
        *axis_columns(axes.hyperparameters, lambda cell: cell.hyperparameters, comparison.cells),
        numeric(validated, validated, lambda cell: cell.validated, ".4f"),
        Column(comparison.metric, comparison.metric, mean_text, lambda cell: cell.score.mean),
        numeric("seeds", "seeds", lambda cell: cell.score.seeds, "d"),
        numeric(LR_DECAY, "lr_decay_sum", lambda cell: cell.result("lr_decay_sum"), ".3g"),
    ]
    return Table("All settings", tuple(columns), tuple(comparison.cells), links=members)


def bytes_table(comparison: Comparison) -> Table | None:
    """The best of each precision within the bytes of each size; None where all come in one size."""
    pools = {
        key: [row for place in places if total(row := comparison.rows[place])]
        for key, places in comparison.pools.items()
    }
    pools = {key: rows for key, rows in pools.items() if in_sizes(rows)}
    if not pools:
        return None
    names = list(dict.fromkeys(row.cell.precision for rows in pools.values() for row in rows))

    def column(name: str) -> Column:
        def best(item: tuple[tuple[Any, ...], float]) -> Row | None:
            pool, budget = item
            small = [row for row in pools[pool] if row.cell.precision == name and total(row) <= budget]
            return best_of(small, comparison.sign) if small else None

        return Column(
            name,
            name,
            lambda item: "" if (row := best(item)) is None else mean_text(row.cell),
            lambda item: None if (row := best(item)) is None else row.cell.score.mean,
        )

    items = tuple((key, budget) for key, rows in pools.items() for budget in sorted({total(r) for r in rows}))
    columns = (
        *axis_columns(comparison.pool_keys, lambda item: item[0], items),
        numeric("bytes at most", "bytes", lambda item: item[1], size),
        *map(column, names),
    )
    caption = f"{comparison.metric} of the best network that fits, on the same data and with the same budget."
    return Table("Equal bytes", columns, items, caption)


def in_sizes(rows: Sequence[Row]) -> bool:
    """Whether a precision comes in more than one size."""
    names = {row.cell.precision for row in rows}
    return any(len({total(row) for row in rows if row.cell.precision == name}) > 1 for name in names)


def shared(values: Sequence[Any]) -> str:
    """The one value that all runs of a row have."""
    texts = {cell_text(value, digits=3) for value in values}
    return texts.pop() if len(texts) == 1 else "mixed"


def interval(low: float | None, high: float | None, form: str) -> str:
    """A confidence interval; nothing where there is none."""
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def of(row: Row, name: str) -> Any:
    """Part of a row's difference to the baseline; None where there is none."""
    return None if row.versus is None else getattr(row.versus, name)


def verdict_columns(row_of: Callable[[Any], Row], level: int) -> list[Column]:
    """What a verdict is by, beside its word."""

    def column(title: str, key: str, form: Any) -> Column:
        return numeric(title, key, lambda item: judged(row_of(item), key), form, level)

    return [
        column("p equivalent", "p_equivalent", p_text),
        column("p not worse", "p_not_worse", p_text),
        numeric("seeds needed", "seeds_needed", lambda item: needed(row_of(item)), ",d", level),
    ]


def needed(row: Row) -> int | None:
    """How many seeds would decide what is undecided."""
    return judged(row, "seeds_needed") if judged(row, "word") == "undecided" else None


def judged(row: Row, name: str) -> Any:
    """Part of a row's verdict; None where there is none."""
    return None if row.verdict is None else getattr(row.verdict, name)


def parameters(row: Row) -> float | None:
    """All weights of the network, quantized or not."""
    return row.cell.metric("size/total_weights")


def members(item: Row | Cell) -> Sequence[Run]:
    """The runs behind a row or a cell."""
    return item.cell.runs if isinstance(item, Row) else item.runs
