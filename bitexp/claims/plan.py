"""What is known of the runs of a set of claims, and what is missing, in the order of the file."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bitexp.claims.analyses import Answer, Evidence
from bitexp.claims.cells import Cell, cells, count, settings, tuning_cells
from bitexp.claims.definition import DERIVED, Claims, Question, Scale, Sweep, analysis_of
from bitexp.claims.identity import Identities
from bitexp.claims.record import Known, counting, known_run, setting_of
from bitexp.common.errors import UserError
from bitexp.report.runs import typed
from bitexp.track.folder import outputs
from bitexp.track.provenance import source_fingerprint


@dataclass
class Part:
    """A question with what is known of its runs."""

    key: str
    question: Question
    sweep: Sweep
    total: int
    """Of all its runs, those that tune with them."""
    runs: dict[tuple[str, ...], dict[int, Known]] = field(default_factory=dict)
    """Those that are compared and finished, by place and seed."""
    words: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    """What is typed for each place, as far as it is tuned; see `Plan.resolved`."""
    missing: list[Cell] = field(default_factory=list)
    """The runs that can be made now, place by place: while one is not tuned, those that tune it."""
    known: int = 0
    """How many of all are finished."""
    diverged: int = 0
    """How many of all will never be, since their loss became NaN."""
    lost: set[tuple[tuple[str, ...], int]] = field(default_factory=set)
    """Those of them that would be compared, by place and seed."""
    took: list[float] = field(default_factory=list)

    @property
    def open(self) -> int:
        """How many are still to be made, those that wait for tuning with them."""
        return self.total - self.known - self.diverged

    @property
    def seconds(self) -> float:
        """About how long one of its runs takes."""
        return statistics.median(self.took) if self.took else self.sweep.seconds

    @property
    def evidence(self) -> Evidence:
        """What an analysis takes."""
        return Evidence(self.sweep.axes, self.runs, self.sweep.seeds, frozenset(self.lost))

    @cached_property
    def answer(self) -> Answer:
        """What its runs say."""
        return analysis_of(self.question).answer(self.evidence)

    @property
    def margin(self) -> float | None:
        """The margin that its runs keep when they begin."""
        return analysis_of(self.question).margin_of_runs

    @property
    def margins_before(self) -> int:
        """How many of the runs that are compared have kept this margin when they began."""
        kept = (run.facts["margin"] for runs in self.runs.values() for run in runs.values())
        return sum(text == str(self.margin) for text in kept)


class Plan:
    """The questions of a scale with all that is known.

    Args:
        record: known runs of any machine by id.
        seeds: instead of those in the file.
    """

    def __init__(
        self,
        claims: Claims,
        scale: Scale,
        record: Mapping[str, Known],
        identities: Identities,
        seeds: int | None = None,
    ) -> None:
        self.claims, self.scale, self.record, self.identities = claims, scale, dict(record), identities
        self.seeds = seeds
        self._seen: dict[tuple[str, ...], Known] = {}
        self._tried: set[Typed] = set()
        self.parts: list[Part] = []
        self.look()

    def look(self) -> None:
        """Looks again at what is finished."""
        self._tried = {(key_of(run.facts["setting"]), run.facts["seed"]) for run in self.record.values()}
        self._tried |= typed_here()
        self.parts = [
            self.part(key, question, self.sized(question.sweep[self.scale]))
            for key, question in self.claims.questions.items()
            if self.scale in question.sweep
        ]
        self.identities.keep()

    def sized(self, sweep: Sweep) -> Sweep:
        """A sweep with the seeds that were asked for. Raises `UserError` where it is tuned on one of them."""
        if self.seeds is None:
            return sweep
        if sweep.tune is not None and sweep.tune.seed < self.seeds:
            raise UserError(f"--seeds={self.seeds} would count seed {sweep.tune.seed}, which is tuned on")
        return sweep.model_copy(update={"seeds": self.seeds})

    def part(self, key: str, question: Question, sweep: Sweep) -> Part:
        """A question with what is known of its runs."""
        part = Part(key, question, sweep, count(sweep))
        chosen: dict[tuple[str, ...], str | None] = {}
        waiting: dict[tuple[str, ...], list[Cell]] = {place: [] for place, _ in settings(sweep)}
        counted = set[tuple[str, ...]]()
        for place, group in tuning_cells(sweep).items():
            known = {cell: run for cell in group if (run := self.find(cell)) is not None}
            finished = {cell: run for cell, run in known.items() if not run.diverged}
            new = [cell for cell in group if cell.typed not in counted]
            counted |= {cell.typed for cell in new}
            part.known += sum(cell in finished for cell in new)
            part.diverged += sum(cell in known and cell not in finished for cell in new)
            waiting[place] += [cell for cell in new if cell not in known]
            part.took += seconds_of(finished.values())
            is_tuned = bool(finished) and len(known) == len(group)
            chosen[place] = best(finished) if is_tuned else None
        for cell in cells(sweep, chosen):
            part.words[cell.place] = cell.words
            run = self.find(cell)
            if run is None:
                waiting[cell.place].append(cell)
                continue
            if run.diverged:
                part.diverged += 1
                part.lost.add((cell.place, cell.seed))
                continue
            part.known += 1
            part.took += seconds_of([run])
            part.runs.setdefault(cell.place, {})[cell.seed] = run
        part.missing = [cell for place in waiting.values() for cell in place]
        return part

    def resolved(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Words with those of derived axes as words of the config."""
        found = [word for word in words if word.partition("=")[0] not in DERIVED]
        for word in words:
            name, _, value = word.partition("=")
            if name in DERIVED:
                found.append(self.identities.decay(found, float(value)))
        return tuple(found)

    def find(self, cell: Cell) -> Known | None:
        """The run of a cell as far as it is known, made here or on another machine; None where it is not."""
        if not self._tried:
            return None
        key = (*self.resolved(cell.words), str(cell.seed))
        if key not in self._seen:
            if (folder := self.tried(cell)) is None:
                return None
            run, here = self.record.get(folder.name), known_run(folder)
            if here is not None:
                run = counting(run, here)
            if run is None or run.facts["seed"] != str(cell.seed):
                return None
            self._seen[key] = self.record[folder.name] = run
        return self._seen[key]

    def tried(self, cell: Cell) -> Path | None:
        """The folder of the run of a cell, named by its id; None where its words were never given."""
        words = self.resolved(cell.words)
        if (tuple(sorted(words)), str(cell.seed)) not in self._tried:
            return None  # to find out which run it would be takes a third of a second
        planned = self.identities.planned(words)
        return outputs() / planned.name / planned.id(cell.seed)

    def used(self) -> Iterator[Known]:
        """The known runs that these questions ask for, each once."""
        yield from {run.id: run for run in self._seen.values()}.values()

    def unused(self) -> list[Known]:
        """Runs of the record that are none of these: of other code, data or settings."""
        used = {run.id for run in self.used()}
        return [run for run in self.record.values() if run.id not in used]

    def of_other_source(self) -> int:
        """How many of those that are used were made by a different version of bitexp."""
        return sum(run.facts["source"] != source_fingerprint() for run in self.used())


Typed = tuple[tuple[str, ...], str]
"""The words of a setting, sorted, and the seed."""


def key_of(setting: str) -> tuple[str, ...]:
    """The words of a line of a record, sorted; those of a damaged one are no run's."""
    try:
        return tuple(sorted(shlex.split(setting)))
    except ValueError:
        return (setting,)


def typed_here() -> set[Typed]:
    """What was typed for the runs that are kept on this machine, where a seed was typed."""
    found = set[Typed]()
    for path in outputs().glob("*/*/overrides.yaml"):
        words = typed(path.parent)
        seeds = [word.partition("=")[2] for word in words if word.startswith("seed=")]
        if seeds:
            found.add((tuple(sorted(setting_of(words))), seeds[-1]))
    return found


def seconds_of(runs: Iterable[Known]) -> list[float]:
    """How long runs took, as far as it is known."""
    return [seconds for run in runs if (seconds := run.seconds) is not None]


def best(finished: Mapping[Cell, Known]) -> str:
    """The tuned word: of the run that is best in validation, the first of several.

    Raises:
        UserError: a run has no validation, so that nothing but the test set could choose.
    """

    return max(finished, key=lambda cell: finished[cell].sign * finished[cell].validated).words[-1]
