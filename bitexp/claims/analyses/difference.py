"""`difference`: is a choice as good as the control, on the same seeds?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from bitexp.claims.analyses.base import (
    ANALYSES,
    Analysis,
    Evidence,
    Finding,
    Place,
    headline,
    unknown_choice,
)
from bitexp.report.stats import is_positive, is_share


@ANALYSES.register("difference")
class Difference(Analysis):
    """The headline metric, of the test set, of each choice minus that of the control, seed by seed.

    Args:
        metric: another than the headline; better: which end of it is the better one, where its name does not
            tell.
        shown: choices that stand beside those that the claim is about; None: all.
        also: further metrics, a column each.
    """

    def __init__(
        self,
        *,
        axis: str,
        control: str,
        margin: float,
        metric: str | None = None,
        better: Literal["higher", "lower"] | None = None,
        claimed: list[str] | None = None,
        shown: list[str] | None = None,
        also: list[str] | None = None,
        holds: list[str] | None = None,
    ) -> None:
        super().__init__(axis, control, margin, claimed, holds)
        self.metric, self.shown, self.also = metric, shown, also or []
        self.better = better or (None if metric is None else better_end(metric))

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*([] if self.metric is None else [self.metric]), *self.also)

    def flaws(self, axes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        yield from super().flaws(axes)
        if self.metric is None and self.better is not None:
            yield f"better={self.better} is of `metric`, and none is named"
        elif self.metric is not None and self.better is None:
            yield f"metric={self.metric}: which end of it is better? better should be higher or lower"
        for label in self.shown or [] if self.axis in axes else []:
            yield from unknown_choice(axes, self.axis, label, "shown")

    def measure(self, evidence: Evidence) -> tuple[str, Literal["higher", "lower"]]:
        name, better = headline(evidence)
        return self.metric or name, self.better or better

    def findings(self, evidence: Evidence) -> list[Finding]:
        rows = []
        place_of_axis = list(evidence.axes).index(self.axis)
        for base in evidence.places(**{self.axis: self.control}):
            rows.append(self.row(evidence, base, base, is_control=True))
            for label in evidence.choices(self.axis):
                if label == self.control or not self.is_shown(label):
                    continue
                ours = (*base[:place_of_axis], label, *base[place_of_axis + 1 :])
                rows.append(self.row(evidence, ours, base))
        return rows

    @property
    def margin_of_runs(self) -> float | None:
        return self.margin if self.metric is None else None

    def is_shown(self, label: str) -> bool:
        """Whether a choice has a row."""
        return self.shown is None or label in (*self.shown, *(self.claimed or []))

    def row(self, evidence: Evidence, ours: Place, base: Place, is_control: bool = False) -> Finding:
        """A choice against the control where all other axes are the same."""
        label = ours[list(evidence.axes).index(self.axis)]
        scores, others = (
            {
                seed: run.metric(self.metric or run.facts["headline"])
                for seed, run in evidence.at(place).items()
            }
            for place in (ours, base)
        )
        means = {
            name: statistics.fmean(found)
            for name in self.also
            if (found := [run.metrics[name] for run in evidence.at(ours).values() if name in run.metrics])
        }
        return Finding(
            ", ".join(ours),
            scores,
            others,
            evidence.seeds,
            (ours,),
            claimed=self.is_claimed(label),
            is_control=is_control,
            extra={name: f"{means[name]:.4g}" if name in means else "" for name in self.also},
        )


def better_end(metric: str) -> Literal["higher", "lower"] | None:
    """Which end of a metric is the better one, where its name tells."""
    if is_share(metric):
        return "higher"
    return "lower" if is_positive(metric) else None
