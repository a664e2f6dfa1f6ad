"""What studies found: the best trial of each, or the front of several objectives; what did not end well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.markup import escape
from rich.table import Table

from bitexp.common.console import Report
from bitexp.common.format import size, value_text
from bitexp.common.secrets import redacted
from bitexp.report.runs import Run, read_run
from bitexp.report.tables import LR_DECAY
from bitexp.sweep.definition import Direction
from bitexp.sweep.samplers import latest
from bitexp.sweep.workers import described

OPTIONAL = (LR_DECAY, "pruned", "trials", "body", "trial", "total", "run", "test")
"""Columns that a narrow screen does without, the first ones first."""


@dataclass(frozen=True)
class StudySummary:
    """A study as it stands."""

    experiment: str
    study: str
    words: Sequence[str]
    storage: str
    folder: Path
    objectives: Sequence[str]
    directions: Sequence[Direction]
    budget: int
    trials: list[FrozenTrial]

    @property
    def complete(self) -> list[FrozenTrial]:
        """The trials that have values."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial of one objective; None where there is none, or there are several objectives."""
        if not self.complete or len(self.objectives) > 1:
            return None
        sign = -1 if self.directions[0] == "minimize" else 1
        return max(self.complete, key=lambda trial: sign * trial.values[0])

    @property
    def front(self) -> list[FrozenTrial]:
        """The trials that no other beats in all objectives, by the last of them."""
        memory = optuna.create_study(directions=list(self.directions))
        memory.add_trials(self.complete)
        numbers = {memory.trials[t.number].number for t in memory.best_trials}
        chosen = [trial for place, trial in enumerate(self.complete) if place in numbers]
        return sorted(chosen, key=lambda trial: trial.values[-1])


def print_findings(summaries: Sequence[StudySummary], report: Report) -> None:
    """Prints the answer, and an account of the trials."""
    report.line()
    if any(study.complete for study in summaries):
        report.table(best_trials(summaries), OPTIONAL, " or in the report")
        if len(summaries[0].objectives) > 1:
            report.sentences(
                "The Pareto front: no other trial is better in one objective without being worse in another."
            )
        else:
            report.sentences(
                f"The best trial of each study by {summaries[0].objectives[0]}; "
                "the test set was not used to choose."
            )
    for study in summaries:
        states = Counter(trial.state for trial in latest(study.trials))
        parts = [
            f"{states[TrialState.COMPLETE]} finished",
            f"{states[TrialState.PRUNED]} pruned",
            f"{states[TrialState.FAIL]} failed",
            f"{states[TrialState.RUNNING] + states[TrialState.WAITING]} open",
        ]
        account = ", ".join(part for part in parts if not part.startswith("0 "))
        report.sentences(
            f"{study.study}: {account or 'nothing done'}; budget {study.budget}. {redacted(study.storage)}"
        )
        for trial in latest(study.trials):
            if trial.state == TrialState.FAIL:
                reason = trial.user_attrs.get("reason")
                report.sentences(f"  failed: {trial.number}: {described(trial.params)}: {reason}")
    places = [study.storage for study in summaries if "://" not in study.storage]
    if places:
        report.line(f"Open it with: optuna-dashboard {places[0]}")


def best_trials(summaries: Sequence[StudySummary]) -> Table:
    """A row for the best trial of each study, or for each trial of a front."""
    rows = [(study, trial) for study in summaries for trial in listed(study)]
    keys = list(dict.fromkeys(key for _, trial in rows for key in trial.params))
    separate = list(dict.fromkeys(word.partition("=")[0] for study in summaries for word in study.words))
    objectives = summaries[0].objectives
    columns = [*separate, *keys]
    out = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        out.add_column(name)
    for name in (*objectives, "test", LR_DECAY, "body", "total", "trials", "pruned", "trial", "run"):
        out.add_column(name, justify="left" if name == "run" else "right")
    for study, trial in rows:
        words = dict(word.partition("=")[::2] for word in study.words)
        states = Counter(t.state for t in study.trials)
        run = trial.user_attrs.get("run")
        out.add_row(
            *(escape(words.get(key, "")) for key in separate),
            *(escape(value_text(trial.params.get(key, ""), 3)) for key in keys),
            *(objective_text(name, value) for name, value in zip(objectives, trial.values, strict=True)),
            *results_of(run),
            str(len(study.trials)),
            str(states[TrialState.PRUNED]),
            str(trial.number),
            Path(run).name if run else "",
        )
    return out


def results_of(run: str | None) -> tuple[str, str, str, str]:
    """What a trial's run says of itself: test metric, learning rate times decay, bytes of body and file."""
    read = read_run(Path(run)) if run else None
    if not isinstance(read, Run) or not read.finished:
        return "", "", "", ""
    sizes = (read.metrics.get(f"size/{part}_bytes") for part in ("body", "total"))
    body, total = ("" if count is None else size(count) for count in sizes)
    decay = read.result["lr_decay_sum"]
    return f"{read.score:.4f}", "" if decay is None else f"{decay:.3g}", body, total


def listed(study: StudySummary) -> list[FrozenTrial]:
    """The trials of a study that its table shows."""
    if len(study.objectives) > 1:
        return study.front if study.complete else []
    return [] if study.best is None else [study.best]


def objective_text(metric: str, value: float) -> str:
    """A value of an objective, for people."""
    return size(value) if metric.endswith("bytes") and not metric.startswith("val/") else f"{value:.4f}"
