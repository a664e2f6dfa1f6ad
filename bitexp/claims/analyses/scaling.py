"""`scaling`: does the gap to the control grow or shrink with data, and by which exponents do losses fall?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from matplotlib.figure import Figure

from bitexp.claims.analyses.base import ANALYSES, Analysis, Evidence, Finding
from bitexp.claims.record import Known
from bitexp.common.errors import UserError
from bitexp.report import figure
from bitexp.report.stats import spread

WEIGHTS = "size/total_weights"
TINY = 1e-9
"""The least that a loss is taken to have as its limit."""


@ANALYSES.register("scaling")
class Scaling(Analysis):
    """How much the gap, by which a choice is worse than the control, changes with each doubling of the data.

    It is found seed by seed. Where more of the headline metric is better, 1 minus it, the error, takes the
    place of the loss. The slope over the logarithm of the steps is common to all sizes, each of which has a
    level of its own. Beside it stand the exponents of L(N, D) = E + A / N^a + B / D^b (arXiv 2203.15556,
    eq. 2), fitted for each seed.

    Args:
        size, data: the axes of the network's size and of the training's length.
    """

    def __init__(
        self,
        *,
        axis: str,
        control: str,
        size: str,
        data: str,
        margin: float,
        claimed: list[str] | None = None,
        holds: list[str] | None = None,
    ) -> None:
        super().__init__(axis, control, margin, claimed, holds)
        self.size, self.data = size, data

    def flaws(self, axes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        yield from super().flaws(axes)
        if set(axes) != {self.axis, self.size, self.data}:
            yield f"its axes should be {self.axis}, {self.size} and {self.data} alone"
        elif min(len(axes[self.size]), len(axes[self.data])) < 3:
            yield f"{self.size} and {self.data} should have three values or more each, to fit"

    def measure(self, evidence: Evidence) -> tuple[str, Literal["higher", "lower"]]:
        return f"change of the gap to {self.control} with a doubling of the data", "lower"

    def findings(self, evidence: Evidence) -> list[Finding]:
        rows = []
        for label in evidence.choices(self.axis):
            slopes, fits = dict[int, float](), list[tuple[float, float]]()
            for seed in range(evidence.seeds):
                grids = [self.grid(evidence, choice, seed) for choice in (label, self.control)]
                if grids[0] is not None and grids[1] is not None:
                    slopes[seed] = slope_of_gap(grids[0], grids[1])
                    fits += [exponents(grids[0])] if grids[0][0].sign < 0 else []
            is_control = label == self.control
            rows.append(
                Finding(
                    label, slopes, dict.fromkeys(slopes, 0.0), evidence.seeds,
                    tuple(evidence.places(**{self.axis: label})),
                    claimed=self.is_claimed(label), is_control=is_control,
                    extra={
                        "exponent of parameters": exponent_text([a for a, _ in fits]),
                        "exponent of data": exponent_text([b for _, b in fits]),
                    },
                )
            )  # fmt: skip
        return rows

    def grid(self, evidence: Evidence, label: str, seed: int) -> Sequence[Known] | None:
        """The runs of a choice and a seed; None while one is missing."""
        places = evidence.places(**{self.axis: label})
        runs = [evidence.at(place)[seed] for place in places if seed in evidence.at(place)]
        return runs if len(runs) == len(places) else None

    def figures(self, evidence: Evidence) -> list[tuple[Figure, str]]:
        drawing, axes = figure.new(5.6, 3.3)
        panel = axes[0, 0]
        others = [label for label in evidence.choices(self.axis) if label != self.control]
        for label in others[:1]:
            for number, size in enumerate(evidence.choices(self.size)):
                points = self.gaps(evidence, label, size)
                if points:
                    colour = figure.PRECISIONS[number % len(figure.PRECISIONS)]
                    panel.plot(*zip(*points, strict=True), "o-", markersize=4, label=size, color=colour)
            if not panel.lines:
                return []
            figure.doublings(panel, sorted({x for line in panel.lines for x in line.get_xdata()}))
            panel.set_xlabel("steps")
            panel.set_ylabel(f"gap of {label} to {self.control}")
            panel.legend(title=self.size)
        return [(drawing, "The gap by the length of the training, mean over the seeds that are there.")]

    def gaps(self, evidence: Evidence, label: str, size: str) -> list[tuple[float, float]]:
        """Steps and gap of a size, mean over common seeds."""
        points = []
        for data in evidence.choices(self.data):
            fixed = {self.size: size, self.data: data}
            ours, base = (
                evidence.at(evidence.places(**fixed, **{self.axis: choice})[0])
                for choice in (label, self.control)
            )
            common = ours.keys() & base.keys()
            if common:
                gap = statistics.fmean(loss(ours[seed]) - loss(base[seed]) for seed in common)
                points.append((steps(next(iter(ours.values()))), gap))
        return points


def steps(run: Known) -> float:
    """How many steps a run has made."""
    return float(run.facts["steps"])


def loss(run: Known) -> float:
    """The headline metric where less is better, else 1 minus it."""
    return run.score if run.sign < 0 else 1 - run.score


def slope_of_gap(ours: Sequence[Known], base: Sequence[Known]) -> float:
    """The slope of the gap over log2 of the steps by least squares, with a level for each size.

    Raises:
        UserError: all runs of a size took the same number of steps.
    """
    by_size: dict[float, list[tuple[float, float]]] = {}
    for run, other in zip(ours, base, strict=True):
        point = math.log2(steps(run)), loss(run) - loss(other)
        by_size.setdefault(run.metrics[WEIGHTS], []).append(point)
    above = below = 0.0
    for points in by_size.values():
        x0, y0 = (statistics.fmean(values) for values in zip(*points, strict=True))
        above += sum((x - x0) * (y - y0) for x, y in points)
        below += sum((x - x0) ** 2 for x, _ in points)
    if not below:
        raise UserError(
            f"the runs of each size took the same {steps(ours[0]):,.0f} steps, which show nothing about the "
            "length of the training; `data` should name an axis that changes it, such as trainer.epochs"
        )
    return above / below


def exponents(runs: Sequence[Known]) -> tuple[float, float]:
    """a and b of L(N, D) = E + A / N^a + B / D^b."""
    points = [(run.metrics[WEIGHTS], steps(run), loss(run)) for run in runs]
    return fitted(points)


def fitted(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The exponents for points (N, D, L), by least squares; N and D in units of their geometric means."""
    import numpy as np
    from scipy.optimize import least_squares

    sizes, data, losses = (np.array(column) for column in zip(*points, strict=True))
    n, d = (values / np.exp(np.log(values).mean()) for values in (sizes, data))

    def residuals(x: Any) -> Any:
        return x[0] + np.exp(x[1]) * n ** -x[2] + np.exp(x[3]) * d ** -x[4] - losses

    low = max(losses.min(), TINY)
    start = [0.6 * low, math.log(0.2 * low), 0.3, math.log(0.2 * low), 0.3]
    bounds = ([0.0, -20.0, 0.0, -20.0, 0.0], [low, 20.0, 3.0, 20.0, 3.0])
    found = least_squares(residuals, start, bounds=bounds, xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=5000)
    return float(found.x[2]), float(found.x[4])


def exponent_text(values: Sequence[float]) -> str:
    """An exponent with its 95 % interval over seeds."""
    if not values:
        return ""
    known = spread(values)
    if known.low is None or known.high is None:
        return f"{known.mean:.3f}"
    return f"{known.mean:.3f} [{known.low:.3f}, {known.high:.3f}]"
