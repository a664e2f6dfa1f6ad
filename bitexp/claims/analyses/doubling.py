"""`doubling`: how much larger does a choice have to be for the loss of the control?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from matplotlib.figure import Figure

from bitexp.claims.analyses.base import ANALYSES, Analysis, Evidence, Finding, Place
from bitexp.claims.record import Known
from bitexp.report import figure
from bitexp.report.stats import spread

WEIGHTS = "size/total_weights"


@ANALYSES.register("doubling")
class Doubling(Analysis):
    """The size of a choice over that of the control at equal loss, in doublings, seed by seed.

    For each size of the choice, the size of the control with that loss is read off the losses of the control,
    linear in the logarithm of the size and extended beyond its ends; the mean over sizes counts. Fewer
    doublings than the claim says are better.

    Args:
        size: the axis of sizes, whose choices are numbers.
        doublings: what the claim says.
    """

    def __init__(
        self,
        *,
        axis: str,
        control: str,
        size: str,
        margin: float,
        doublings: float = 1.0,
        claimed: list[str] | None = None,
        holds: list[str] | None = None,
    ) -> None:
        super().__init__(axis, control, margin, claimed, holds)
        self.size, self.doublings = size, doublings

    def flaws(self, axes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        yield from super().flaws(axes)
        if self.size not in axes:
            yield f"size={self.size} is no axis of the sweep: {', '.join(axes)}"
        elif words := [label for label in axes[self.size] if not is_size(label)]:
            yield f"the choices of {self.size} should be numbers above 0, and '{words[0]}' is none"
        elif len(axes[self.size]) < 2:
            yield f"one {self.size} does not say what another is worth: it should have two values or more"
        elif set(axes) != {self.axis, self.size}:
            yield f"its axes should be {self.axis} and {self.size} alone"

    def measure(self, evidence: Evidence) -> tuple[str, Literal["higher", "lower"]]:
        return f"doublings of {self.size} for the loss of {self.control}", "lower"

    def remarks(self, evidence: Evidence) -> list[str]:
        return [
            f"Differences are to the claim, which says {self.doublings:g}. Beyond the control are "
            "losses that none of its sizes reaches, where its curve is extended."
        ]

    def findings(self, evidence: Evidence) -> list[Finding]:
        rows = []
        for label in evidence.choices(self.axis):
            if label == self.control:
                continue
            curves = self.curves(evidence, label, lambda place, run: self.size_of(evidence, place))
            sizes = {seed: horizontal(*pair) for seed, pair in curves.items()}
            weights = self.curves(evidence, label, lambda place, run: run.metrics[WEIGHTS])
            rows.append(
                Finding(
                    label, sizes, dict.fromkeys(sizes, self.doublings), evidence.seeds,
                    tuple(evidence.places(**{self.axis: label})),
                    claimed=self.is_claimed(label),
                    extra={
                        f"factor of {self.size}": factor_text(list(sizes.values())),
                        "factor of parameters": factor_text([horizontal(*pair) for pair in weights.values()]),
                        "beyond the control": beyond_text(curves.values()),
                    },
                )
            )  # fmt: skip
        return rows

    def size_of(self, evidence: Evidence, place: Place) -> float:
        """The number that a choice of the size stands for."""
        return float(place[list(evidence.axes).index(self.size)])

    def curves(
        self, evidence: Evidence, label: str, measure: Callable[[Place, Known], float]
    ) -> dict[int, tuple[Curve, Curve]]:
        """That of a choice and that of the control, for each seed of which all sizes are there."""
        found = {}
        for seed in range(evidence.seeds):
            curves: list[Curve] = []
            for choice in (label, self.control):
                places = evidence.places(**{self.axis: choice})
                runs = [(place, evidence.at(place)[seed]) for place in places if seed in evidence.at(place)]
                if len(runs) == len(places):
                    curves.append([(math.log2(measure(p, run)), run.sign * run.score) for p, run in runs])
            if len(curves) == 2:
                found[seed] = (curves[0], curves[1])
        return found

    def figures(self, evidence: Evidence) -> list[tuple[Figure, str]]:
        drawing, axes = figure.new(5.6, 3.3)
        panel, metric = axes[0, 0], ""
        for number, label in enumerate(evidence.choices(self.axis)):
            points = []
            for place in evidence.places(**{self.axis: label}):
                if runs := list(evidence.at(place).values()):
                    scores, metric = [run.score for run in runs], runs[0].facts["headline"]
                    spread_ = statistics.stdev(scores) if len(scores) > 1 else 0.0
                    points.append((self.size_of(evidence, place), statistics.fmean(scores), spread_))
            if points:
                xs, ys, bars = zip(*sorted(points), strict=True)
                colour = figure.PRECISIONS[number % len(figure.PRECISIONS)]
                panel.errorbar(
                    xs, ys, yerr=bars, marker="o", markersize=4, capsize=3, label=label, color=colour
                )
        if not metric:
            return []
        figure.doublings(panel, [float(size) for size in evidence.choices(self.size)])
        panel.set_xlabel(self.size)
        panel.set_ylabel(metric)
        panel.legend()
        return [(drawing, "Mean and standard deviation over the seeds that are there.")]


def is_size(label: str) -> bool:
    """Whether a choice stands for a number above 0."""
    try:
        return 0 < float(label) < math.inf
    except ValueError:
        return False


Curve = Sequence[tuple[float, float]]
"""The logarithm of a size, and quality there, of which more is better."""


def horizontal(ours: Curve, base: Curve) -> float:
    """How far to the right of base ours lies, at equal quality, as a mean over its points."""
    ordered = sorted(base)
    return statistics.fmean(x - inverse(ordered, y) for x, y in ours)


def inverse(curve: Curve, y: float) -> float:
    """Where a curve has a quality: on the first piece that reaches it, else on the end piece nearer to it."""
    pieces = list(pairwise(curve))
    for (x0, y0), (x1, y1) in pieces:
        if min(y0, y1) <= y <= max(y0, y1) and y0 != y1:
            return x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    ends = [pieces[0], pieces[-1]]
    (x0, y0), (x1, y1) = min(ends, key=lambda piece: min(abs(y - point[1]) for point in piece))
    return x0 + (y - y0) * (x1 - x0) / (y1 - y0) if y0 != y1 else x0


def beyond_text(pairs: Collection[tuple[Curve, Curve]]) -> str:
    """How many points of the first of each pair have a quality that the second has nowhere."""
    points = [
        min(q for _, q in base) <= quality <= max(q for _, q in base)
        for ours, base in pairs
        for _, quality in ours
    ]
    return f"{points.count(False)} of {len(points)}" if points else ""


def factor_text(doublings: Sequence[float]) -> str:
    """A factor with its 95 % interval over seeds, Student's on the scale of the logarithm."""
    if not doublings:
        return ""
    known = spread(doublings)
    if known.low is None or known.high is None:
        return f"{2**known.mean:.2f}"
    return f"{2**known.mean:.2f} [{2**known.low:.2f}, {2**known.high:.2f}]"
