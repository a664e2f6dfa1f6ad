"""`robustness`: at how many settings does a choice do about as well as at its best one?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bitexp.claims.analyses.base import ANALYSES, Analysis, Evidence, Finding
from bitexp.report import figure
from bitexp.report.plots import short
from bitexp.report.resampling import bootstrap
from bitexp.report.stats import within
from bitexp.report.sweep_plots import in_a_square

FEWEST = 4
"""Settings that make a map."""


@ANALYSES.register("robustness")
class Robustness(Analysis):
    """The share of settings whose validation is within a tolerance of the best one, seed by seed.

    Args:
        over: the two axes that make the settings.
        tolerance: as a share of the best value.
    """

    def __init__(
        self,
        *,
        axis: str,
        control: str,
        over: list[str],
        margin: float,
        tolerance: float = 0.01,
        claimed: list[str] | None = None,
        holds: list[str] | None = None,
    ) -> None:
        super().__init__(axis, control, margin, claimed, holds)
        self.over, self.tolerance = over, tolerance

    def flaws(self, axes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        yield from super().flaws(axes)
        if len(self.over) != 2 or any(axis not in axes for axis in self.over):
            yield f"over={self.over} should be two axes of the sweep: {', '.join(axes)}"
        elif len(axes[self.over[0]]) * len(axes[self.over[1]]) < FEWEST:
            yield f"a map of fewer than {FEWEST} settings says nothing about robustness"

    def measure(self, evidence: Evidence) -> tuple[str, Literal["higher", "lower"]]:
        return f"share of settings within {self.tolerance:g} of the best", "higher"

    def findings(self, evidence: Evidence) -> list[Finding]:
        rows = []
        for rest in self.others(evidence):
            base = self.shares(evidence, {**rest, self.axis: self.control})
            for label in [self.control, *(c for c in evidence.choices(self.axis) if c != self.control)]:
                fixed = {**rest, self.axis: label}
                ours = self.shares(evidence, fixed)
                rows.append(
                    Finding(
                        self.name(evidence, fixed), ours, base, evidence.seeds,
                        tuple(evidence.places(**fixed)),
                        claimed=self.is_claimed(label),
                        is_control=label == self.control,
                        extra={"share, bootstrap over seeds": share_text(ours)},
                    )
                )  # fmt: skip
        return rows

    def name(self, evidence: Evidence, fixed: Mapping[str, str]) -> str:
        """What a row is called: its choices, in the order of the axes."""
        return ", ".join(fixed[axis] for axis in evidence.axes if axis in fixed)

    def others(self, evidence: Evidence) -> list[dict[str, str]]:
        """The choices of all axes that make neither rows' names nor settings."""
        found: list[dict[str, str]] = [{}]
        for axis in evidence.axes:
            if axis not in (self.axis, *self.over):
                found = [{**known, axis: label} for known in found for label in evidence.choices(axis)]
        return found

    def shares(self, evidence: Evidence, fixed: Mapping[str, str]) -> dict[int, float]:
        """The robust share, for each seed of which all settings are there; what diverged is not robust."""
        places = evidence.places(**fixed)
        found = {}
        for seed in range(evidence.seeds):
            runs = [evidence.at(place)[seed] for place in places if seed in evidence.at(place)]
            lost = sum((place, seed) in evidence.diverged for place in places)
            if runs and len(runs) + lost == len(places):
                good = len(runs) * within([run.validated for run in runs], runs[0].sign, self.tolerance)
                found[seed] = good / len(places)
        return found

    def figures(self, evidence: Evidence) -> list[tuple[Figure, str]]:
        fixed = [
            {**rest, self.axis: label}
            for label in evidence.choices(self.axis)
            for rest in self.others(evidence)
        ]
        maps = [(one, self.means(evidence, one)) for one in fixed]
        maps = [(one, means) for one, means in maps if means]
        if not maps:
            return []
        drawing = draw_maps(
            [(self.name(evidence, one), means) for one, means in maps],
            evidence.choices(self.over[0]),
            evidence.choices(self.over[1]),
            self.over,
        )
        return [
            (drawing, "Validation at each setting, mean over the seeds that are there, all on one scale.")
        ]

    def means(self, evidence: Evidence, fixed: Mapping[str, str]) -> dict[tuple[str, str], float]:
        """Mean validation over seeds by setting."""
        names = list(evidence.axes)
        found = {}
        for place in evidence.places(**fixed):
            runs = evidence.at(place).values()
            if runs:
                spot = place[names.index(self.over[0])], place[names.index(self.over[1])]
                found[spot] = statistics.fmean(run.validated for run in runs)
        return found


def share_text(shares: Mapping[int, float]) -> str:
    """The mean share with its bootstrap interval."""
    if not shares:
        return ""
    values = list(shares.values())
    mean = f"{statistics.fmean(values):.0%}"
    if len(set(values)) < 2:
        return mean
    low, high = bootstrap(values)
    return f"{mean} [{low:.0%}, {high:.0%}]"


def draw_maps(
    maps: Sequence[tuple[str, Mapping[tuple[str, str], float]]],
    xs: Sequence[str],
    ys: Sequence[str],
    names: Sequence[str],
) -> Figure:
    """A map for each row on one scale of colours."""
    values = [value for _, means in maps for value in means.values()]
    scale = Normalize(min(values), max(values))
    across = min(3, len(maps))
    down = -(-len(maps) // across)
    drawing, panels = figure.new(
        (0.5 + 0.42 * len(xs)) * across + 0.9, (0.9 + 0.32 * len(ys)) * down + 0.4, down, across,
        sharex=True, sharey=True,
    )  # fmt: skip
    image: Any = None
    for panel in panels.flat[len(maps) :]:
        panel.set_axis_off()
    for panel, (title, means) in zip(panels.flat, maps, strict=False):
        table = [[means.get((x, y), float("nan")) for x in xs] for y in ys]
        image = panel.pcolormesh(table, norm=scale, cmap="viridis", edgecolor="none")
        for (x, y), value in means.items():
            ink = "#101418" if scale(value) > 0.6 else "#ffffff"
            spot = xs.index(x) + 0.5, ys.index(y) + 0.5
            panel.text(*spot, in_a_square(value), fontsize=7, color=ink, ha="center", va="center")
        panel.set_title(short(title))
        panel.set_xticks([i + 0.5 for i in range(len(xs))], xs, rotation=90)
        panel.set_yticks([j + 0.5 for j in range(len(ys))], ys)
        panel.set_xlabel(names[0])
        panel.grid(False)
    panels[0, 0].set_ylabel(names[1])
    drawing.colorbar(image, ax=panels, shrink=0.85, pad=0.015).outline.set_visible(False)
    return drawing
