"""From runs to comparisons: cells (a setting over seeds), rows (a precision at its best setting)."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bitexp.report.axes import HYPERPARAMETERS, Axes, find_axes, independent, values
from bitexp.report.energy import NODE, energy
from bitexp.report.equivalence import Verdict, corrected, verdict
from bitexp.report.margins import Margin, margin_of
from bitexp.report.runs import Run
from bitexp.report.sameness import setting
from bitexp.report.stats import LEVEL, Paired, Spread, front, holm, paired, spread, within
from bitexp.track.folder import RunFolder, is_number, validation_of

BASELINE = "full"
"""The precision that the others are compared with."""
NETWORK = ("model.name", "model.arch")
"""What tells networks from each other; all else of a model is its size."""
TOLERANCE = 0.01
"""How far from the best a setting may be and still count as good, as a share of the best."""


@dataclass(frozen=True)
class Cell:
    """The runs of one precision at one setting: they differ in the seed alone."""

    precision: str
    setting: tuple[Any, ...]
    variant: tuple[Any, ...]
    hyperparameters: tuple[Any, ...]
    runs: tuple[Run, ...]

    @cached_property
    def score(self) -> Spread:
        """The headline metric over seeds."""
        return spread([run.score for run in self.runs], self.runs[0].headline)

    @cached_property
    def validated(self) -> float | None:
        """Its mean on the validation part; None where a run has none."""
        scores = [run.validated for run in self.runs]
        return None if None in scores else statistics.fmean(score for score in scores if score is not None)

    @property
    def chosen_by(self) -> float:
        """What settings are chosen by: validation, or the headline metric where nothing was held out."""
        return self.score.mean if self.validated is None else self.validated

    def metric(self, name: str) -> float | None:
        """The median of a metric over the runs that have it."""
        measured = [run.metrics[name] for run in self.runs if name in run.metrics]
        return statistics.median(measured) if measured else None

    def result(self, name: str) -> float | None:
        """The median of a number in result.json over the runs that have it."""
        numbers = [run.result[name] for run in self.runs if is_number(run.result.get(name))]
        return statistics.median(numbers) if numbers else None

    @cached_property
    def file_bytes(self) -> float | None:
        """Bytes of the packed file on disk, its header included; None where a run has none there."""
        try:
            return statistics.median(RunFolder(run.path).packed.stat().st_size for run in self.runs)
        except OSError:
            return None

    def config(self, key: str) -> list[Any]:
        """The values of a key over the runs, each once."""
        return list(dict.fromkeys(run.flat.get(key) for run in self.runs))

    def energy(self, node: str = NODE) -> float | None:
        """Joules for one image or token."""
        return next((j for run in self.runs if (j := energy(run.metrics, node)) is not None), None)

    @property
    def bits(self) -> float | None:
        """Bits per weight of the body, measured: bytes in the packed file, scales included."""
        count, weights = self.metric("size/body_bytes"), self.metric("size/body_weights")
        return None if count is None or not weights else 8 * count / weights


@dataclass(frozen=True)
class Row:
    """A precision at its chosen setting, against the baseline on the same network, data and budget."""

    cell: Cell
    cells: tuple[Cell, ...]
    versus: Paired | None
    robust: float
    """The share of its settings within the tolerance of its best one."""
    diverged: int = 0
    """Further settings, which no seed has finished, since the loss became NaN: far from the best."""
    base: Cell | None = None
    """What it is compared with."""
    verdict: Verdict | None = None
    """Of that comparison, where there is a margin."""

    @property
    def settings(self) -> int:
        """How many were tried."""
        return len(self.cells) + self.diverged


@dataclass(frozen=True)
class Comparison:
    """All that the finished runs of one experiment say together."""

    name: str
    metric: str
    sign: int
    tolerance: float
    axes: Axes
    rows: tuple[Row, ...]
    margin: Margin | None = None

    @cached_property
    def cells(self) -> list[Cell]:
        """Every setting, row by row."""
        return [cell for row in self.rows for cell in row.cells]

    @property
    def runs(self) -> list[Run]:
        """Every finished run."""
        return [run for cell in self.cells for run in cell.runs]

    @cached_property
    def precisions(self) -> list[str]:
        """Those of its rows, each once, full precision first."""
        return sorted({row.cell.precision for row in self.rows}, key=order)

    @property
    def held_out(self) -> bool | None:
        """Whether settings were chosen on validation data; None where some rows had them, and others none."""
        several = [row.cells for row in self.rows if len(row.cells) > 1]
        known = {cell.validated is not None for cells in several for cell in cells}
        return None if len(known) > 1 else all(known)

    @property
    def chosen_by_metric(self) -> str:
        """The metric that settings were chosen by."""
        validated = validation_of(self.metric)
        mixed = f"{validated}, or {self.metric} where nothing was held out"
        return {True: validated, False: self.metric, None: mixed}[self.held_out]

    @cached_property
    def groups(self) -> list[list[Row]]:
        """The rows that may be compared with each other: of one network, data and budget."""
        by_setting: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for row in self.rows:
            by_setting[row.cell.setting].append(row)
        return list(by_setting.values())

    @cached_property
    def pools(self) -> dict[tuple[Any, ...], list[int]]:
        """The places of rows that may be compared at equal cost, by what they have in common (`pool_keys`).

        They are of one budget and data; the network may come in any size.
        """
        pools: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            pools[values(row.cell.runs[0], self.pool_keys)].append(place)
        return dict(pools)

    @cached_property
    def pool_keys(self) -> tuple[str, ...]:
        """What rows have to have in common to be compared at equal cost: a size of a network may differ.

        A choice that stands for nothing of the network is named; of another one the other keys are.
        """
        networks = [key for key in NETWORK if len({row.cell.runs[0].flat.get(key) for row in self.rows}) > 1]
        keys = list(networks)
        for axis in self.axes.setting:
            stands_for = self.axes.choices.get(axis, (axis,))
            others = [key for key in stands_for if not key.startswith("model.")]
            keys += [axis] if len(others) == len(stands_for) else others
        return tuple(independent([row.cell.runs[0] for row in self.rows], keys))

    def fronts(self, costs: Sequence[float | None]) -> list[list[int]]:
        """The Pareto front of quality against a cost per row, for each pool, of the rows that have one."""
        found = []
        for places in self.pools.values():
            known = [place for place in places if costs[place] is not None]
            points = [(float(costs[i] or 0), self.sign * self.rows[i].cell.score.mean) for i in known]
            found.append([known[place] for place in front(points)])
        return [chosen for chosen in found if chosen]


def order(precision: str) -> tuple[int, str]:
    """Full precision first, then its control, then the others by name."""
    return ({BASELINE: 0, "full_norm": 1}.get(precision, 2), precision)


def compare(
    runs: Sequence[Run], tolerance: float = TOLERANCE, margin: float | None = None
) -> list[Comparison]:
    """A comparison for each experiment and headline metric among the finished runs.

    Args:
        tolerance: how far from the best a setting may be and still count as good, as a share of the best.
        margin: the smallest difference that matters, instead of the one that the runs began with.
    """
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.finished:
            groups[run.name, run.headline].append(run)
    return [
        compare_experiment(
            name,
            metric,
            group,
            tolerance,
            margin_of(group, margin),
            [run for run in runs if run.name == name and run.diverged],
        )
        for (name, metric), group in sorted(groups.items())
    ]


def compare_experiment(
    name: str,
    metric: str,
    runs: Sequence[Run],
    tolerance: float,
    margin: Margin | None,
    diverged: Sequence[Run] = (),
) -> Comparison:
    """The comparison of one experiment's finished runs; the robustness of its rows counts others, too."""
    axes, sign = find_axes(runs), -1 if runs[0].result["better"] == "min" else 1
    families: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells(runs, axes):
        families[cell.setting, cell.precision, cell.variant].append(cell)
    ordered = sorted(families.items(), key=lambda item: (sortable(item[0][0]), order(item[0][1])))
    rows = [row_of(family, sign, tolerance, diverged_settings(family, diverged)) for _, family in ordered]
    judged = with_verdicts(against_baseline(rows), sign, margin)
    return Comparison(name, metric, sign, tolerance, axes, tuple(judged), margin)


def sortable(setting: tuple[Any, ...]) -> tuple[Any, ...]:
    """A key that sorts settings: numbers by size, before words; in these as well, as in lists of widths."""
    return tuple(
        (False, float(value))
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (True, [(word, float(number or -1)) for word, number in WORDS.findall(str(value))])
        for value in setting
    )


WORDS = re.compile(r"(\D*)(\d+(?:\.\d+)?)?")
"""What is no number, and the number after it."""


def cells(runs: Sequence[Run], axes: Axes) -> list[Cell]:
    """The runs by what they have in common but for their seeds, in order."""
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        place = (values(run, keys) for keys in (axes.setting, axes.variant, axes.hyperparameters))
        groups[run.precision, *place].append(run)
    unordered = [
        Cell(
            precision, setting, variant, hyperparameters, tuple(sorted(group, key=lambda run: str(run.seed)))
        )
        for (precision, setting, variant, hyperparameters), group in groups.items()
    ]
    return sorted(
        unordered, key=lambda cell: [sortable(p) for p in (cell.setting, cell.variant, cell.hyperparameters)]
    )


def chosen_cell(family: Sequence[Cell], sign: int) -> Cell:
    """The setting that stands for a precision: among those with the most seeds the best validated one."""
    most = max(len(cell.runs) for cell in family)
    return max((c for c in family if len(c.runs) == most), key=lambda cell: sign * cell.chosen_by)


def row_of(family: Sequence[Cell], sign: int, tolerance: float, diverged: int) -> Row:
    """A precision at its chosen setting, and how robust it is to its setting."""
    good = len(family) * within([cell.chosen_by for cell in family], sign, tolerance)
    return Row(chosen_cell(family, sign), tuple(family), None, good / (len(family) + diverged), diverged)


def diverged_settings(family: Sequence[Cell], diverged: Sequence[Run]) -> int:
    """How many settings of optimizer and schedule no seed of a precision has finished, all else the same."""
    if not diverged:
        return 0

    def parts(run: Run) -> tuple[str, str]:
        """The setting, and all else; their own keys say it: what no run has finished is no axis."""
        keys = setting(run)
        own = {key: value for key, value in keys.items() if key.startswith(HYPERPARAMETERS)}
        rest = {key: value for key, value in keys.items() if key not in own}
        return repr(sorted(own.items())), repr([sorted(rest.items()), run.data])

    finished = [parts(run) for cell in family for run in cell.runs]
    alike, tried = {rest for _, rest in finished}, {own for own, _ in finished}
    return len({own for own, rest in map(parts, diverged) if rest in alike} - tried)


def against_baseline(rows: Sequence[Row]) -> list[Row]:
    """Adds to each row its paired difference to the baseline of the same network, data and budget.

    p values are corrected for all differences of the experiment together. Where the baseline comes in
    several variants, the first stands.
    """
    bases: dict[tuple[Any, ...], Cell] = {}
    for row in rows:
        if row.cell.precision == BASELINE:
            bases.setdefault(row.cell.setting, row.cell)
    tests: list[Paired | None] = []
    for row in rows:
        base = bases.get(row.cell.setting)
        if base is None or row.cell.precision == BASELINE:
            tests.append(None)
        else:
            ours, theirs = ({run.seed: run.score for run in cell.runs} for cell in (row.cell, base))
            tests.append(paired(ours, theirs, base.runs[0].headline))
    ps = holm([None if test is None else test.p for test in tests])
    return [
        row if test is None else replace(row, versus=replace(test, p_holm=p), base=bases[row.cell.setting])
        for row, test, p in zip(rows, tests, ps, strict=True)
    ]


def with_verdicts(rows: Sequence[Row], sign: int, margin: Margin | None) -> list[Row]:
    """Adds what the difference of each row says, given a margin; by Holm's correction, too."""
    if margin is None:
        return list(rows)
    verdicts = [
        None
        if test is None
        else verdict(
            test.differences, margin.value, "higher" if sign > 0 else "lower", LEVEL, test.resolution
        )
        for test in (row.versus for row in rows)
    ]
    return [replace(row, verdict=one) for row, one in zip(rows, corrected(verdicts), strict=True)]
