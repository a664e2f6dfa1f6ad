"""What every analysis has in common: a number for each seed, compared with that of a control."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from matplotlib.figure import Figure

from bitexp.claims.record import KEPT, Known
from bitexp.common.registry import Registry
from bitexp.common.spelling import nearest
from bitexp.report.equivalence import Verdict, corrected, verdict
from bitexp.report.stats import FLOAT

ANALYSES: Registry[type[Analysis]] = Registry("analysis")

Place = tuple[str, ...]
"""The name of a choice for each axis, in the order of the axes."""
Standing = Literal["holds", "holds in part", "does not hold", "undecided", "not yet run"]
NOT_YET: Literal["not yet run"] = "not yet run"


@dataclass(frozen=True)
class Evidence:
    """The finished runs of a question, by place and seed, and how many seeds there will be."""

    axes: Mapping[str, Mapping[str, Any]]
    runs: Mapping[Place, Mapping[int, Known]]
    seeds: int
    diverged: frozenset[tuple[Place, int]] = frozenset()
    """Runs that will never be finished, by place and seed."""

    def at(self, place: Place) -> Mapping[int, Known]:
        """The runs of a place by their seeds."""
        return self.runs.get(place, {})

    def complete(self, places: Sequence[Place]) -> bool:
        """Whether all seeds of some places are there."""
        return all(len(self.at(place)) == self.seeds for place in places)

    def choices(self, axis: str) -> list[str]:
        """The names of the choices of an axis."""
        return list(self.axes[axis])

    def places(self, **fixed: str) -> list[Place]:
        """All places, or those with these choices of some axes."""
        import itertools

        every = itertools.product(*(list(choices) for choices in self.axes.values()))
        names = list(self.axes)
        return [p for p in every if all(p[names.index(axis)] == label for axis, label in fixed.items())]


@dataclass(frozen=True)
class Finding:
    """A row of an answer: numbers of one choice by seed, those of its control, and the verdict.

    There is no verdict as long as a seed is missing.
    """

    name: str
    ours: Mapping[int, float]
    base: Mapping[int, float]
    wanted: int
    places: tuple[Place, ...] = ()
    claimed: bool = True
    """Whether the claim is about it; else it stands beside."""
    verdict: Verdict | None = None
    is_control: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further columns."""

    @property
    def seeds(self) -> int:
        """How many seeds both have."""
        return len(self.ours.keys() & self.base.keys())

    @property
    def finished(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.seeds == self.wanted

    @property
    def differences(self) -> list[float]:
        """Ours minus base, seed by seed."""
        return [self.ours[seed] - self.base[seed] for seed in sorted(self.ours.keys() & self.base.keys())]

    @property
    def resolution(self) -> float:
        """Differences that are this close are the same: metrics are averaged in fp32."""
        return FLOAT * max(map(abs, [*self.ours.values(), *self.base.values()]), default=0.0)

    @property
    def mean(self) -> float | None:
        """Of all seeds that are there."""
        return statistics.fmean(self.ours.values()) if self.ours else None

    @property
    def std(self) -> float | None:
        """The same; None for one seed."""
        return statistics.stdev(self.ours.values()) if len(self.ours) > 1 else None

    @property
    def word(self) -> str:
        """The verdict in a word, or how far it is."""
        if self.is_control:
            return ""
        return self.verdict.word if self.verdict is not None else NOT_YET


@dataclass(frozen=True)
class Answer:
    """What runs say about a question."""

    findings: tuple[Finding, ...]
    measure: str
    """What the numbers are."""
    better: Literal["higher", "lower"]
    standing: Standing
    figures: tuple[tuple[Figure, str], ...] = ()
    """Beside that of the differences, each with what it shows."""
    remarks: tuple[str, ...] = ()


class Analysis:
    """An analysis of a sweep; its keyword arguments are those of the file of claims.

    Subclasses say what the numbers are (`findings`), and what they show beside them.

    Args:
        axis: whose choices are compared.
        control: the choice that the others are compared with.
        margin: the smallest difference that matters, in the units of the numbers.
        claimed: the choices that the claim is about; None: all.
        holds: the verdicts for which it holds; None: those of the class.
    """

    holds: ClassVar[tuple[str, ...]] = ("better", "equivalent")
    """The verdicts for which a claim holds, where the file says nothing else."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it takes by their names."""
        return ()

    @property
    def margin_of_runs(self) -> float | None:
        """The margin where it is of the headline metric, which runs keep; None where of another number."""
        return None

    def __init__(
        self,
        axis: str,
        control: str,
        margin: float,
        claimed: Sequence[str] | None,
        holds: Sequence[str] | None,
    ) -> None:
        self.axis, self.control, self.margin, self.claimed = axis, control, margin, claimed
        self.wanted = tuple(holds) if holds is not None else self.holds

    def flaws(self, axes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Why a sweep with these axes could not be analysed."""
        if not self.margin > 0:
            yield f"margin={self.margin:g} should be above 0: without one nothing can be called equivalent"
        for word in self.wanted:
            if word not in ("better", "equivalent", "worse"):
                yield f"holds names '{word}'; known: better, equivalent, worse"
        for name in self.metrics:
            if not name.startswith(KEPT):
                yield f"{name} is not kept of runs: what is begins with {', '.join(KEPT)}"
        parts = {**dict.fromkeys(self.claimed or (), "claimed"), self.control: "the control"}
        for label, what in parts.items():
            yield from unknown_choice(axes, self.axis, label, what)
            if self.axis not in axes:
                return
        if not any(self.is_claimed(label) for label in axes[self.axis] if label != self.control):
            yield f"the claim is about no choice of {self.axis} beside the control '{self.control}'"

    def is_claimed(self, label: str) -> bool:
        """Whether the claim is about a choice."""
        return self.claimed is None or label in self.claimed

    def findings(self, evidence: Evidence) -> list[Finding]:
        """The rows, without verdicts."""
        raise NotImplementedError

    def measure(self, evidence: Evidence) -> tuple[str, Literal["higher", "lower"]]:
        """What the numbers are called, and which are better."""
        raise NotImplementedError

    def figures(self, evidence: Evidence) -> list[tuple[Figure, str]]:
        """What is shown beside the differences."""
        return []

    def remarks(self, evidence: Evidence) -> list[str]:
        """What else is to be said."""
        return []

    def answer(self, evidence: Evidence) -> Answer:
        """All of it, with verdicts that are corrected for their number where a question has several."""
        rows = self.findings(evidence)
        name, better = self.measure(evidence)
        verdicts = corrected(
            [
                verdict(row.differences, self.margin, better, resolution=row.resolution)
                if row.finished and not row.is_control
                else None
                for row in rows
            ]
        )
        rows = [replace(row, verdict=one) for row, one in zip(rows, verdicts, strict=True)]
        return Answer(
            tuple(rows), name, better, self.standing(rows), tuple(self.figures(evidence)),
            tuple(self.remarks(evidence)),
        )  # fmt: skip

    def standing(self, rows: Sequence[Finding]) -> Standing:
        """Whether the claim holds: for all rows that it is about, or for some of them.

        It does not hold where none agrees and one contradicts it, whatever is undecided beside.
        """
        words: list[str] = [row.word for row in rows if row.claimed and not row.is_control]
        if not words or NOT_YET in words:
            return NOT_YET
        held = sum(word in self.wanted for word in words)
        if held == len(words):
            return "holds"
        if held:
            return "holds in part"
        return "undecided" if set(words) == {"undecided"} else "does not hold"


def unknown_choice(axes: Mapping[str, Mapping[str, Any]], axis: str, label: str, what: str) -> Iterator[str]:
    """What is wrong where an axis, or the choice of it that is `what`, is not in a sweep."""
    if axis not in axes:
        yield f"the axis '{axis}' is not in the sweep.{nearest(axis, axes)} Known: {', '.join(axes)}"
    elif label not in axes[axis]:
        known = axes[axis]
        yield f"{what} '{label}' is not among {axis}.{nearest(label, known)} Known: {', '.join(known)}"


def headline(evidence: Evidence) -> tuple[str, Literal["higher", "lower"]]:
    """The metric that runs are compared by, and which end is better; by its word while there is no run."""
    for runs in evidence.runs.values():
        for run in runs.values():
            return run.facts["headline"], "higher" if run.sign > 0 else "lower"
    return "test", "higher"
