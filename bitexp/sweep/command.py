"""One command, one study or several: makes the trials that are missing, and prints what was found."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from bitexp.common.console import Report
from bitexp.common.exit import Progress
from bitexp.common.files import read_json, write_json
from bitexp.common.format import counted
from bitexp.sweep.findings import StudySummary, print_findings
from bitexp.sweep.live_view import LiveView
from bitexp.sweep.older_code import about_older_code
from bitexp.sweep.options import SweeperOptions
from bitexp.sweep.samplers import latest
from bitexp.sweep.spec import StudySpec, read_specs, typed
from bitexp.sweep.storage import Store
from bitexp.sweep.study import ClaimedTrial, Study, TrialResult
from bitexp.sweep.trial_reporter import STUDY, StudyOfJobs
from bitexp.sweep.tuned import write_tuned
from bitexp.sweep.workers import Workers, described

NOT_VALIDATED = "the run was never validated: there are no validation data"


class Jobs(Protocol):
    """What makes the jobs: Hydra's sweeper with its launcher."""

    config: DictConfig
    workers: int

    @property
    def basic(self) -> bool: ...

    def compose(self, overrides: Sequence[str]) -> DictConfig: ...

    def prepare_jobs(self, folder: Path, variables: dict[str, str]) -> None: ...

    def launch(self, number: int, overrides: Sequence[str]) -> str | None: ...

    def halt(self) -> None: ...


def make_studies(
    jobs: Jobs, options: SweeperOptions, fixed: Sequence[str], space: Mapping[str, BaseDistribution]
) -> list[StudySummary]:
    """Makes the study of a command, or one for each value of the keys in `per`.

    Args:
        fixed: the overrides that all trials share; space: what is drawn for each.

    Raises:
        UserError: anything in the command that cannot work, before any trial is made.
    """
    report = Report()
    sweep = jobs.config.hydra.runtime.choices.get("sweeps")
    specs = read_specs(options, fixed, space, jobs.compose, sweep)
    summaries: list[StudySummary] = []
    for spec in specs:
        summaries.append(make_study(jobs, spec, report))
        if options.write_tuned:
            write_best(summaries[-1], fixed, jobs, report)
        if Progress.worst >= 128:
            break
    print_findings(summaries, report)
    return summaries


def make_study(jobs: Jobs, spec: StudySpec, report: Report) -> StudySummary:
    """Makes the trials that are missing, and returns what the study holds then."""
    store = Store(spec.storage, report.line)
    study = Study(store, spec.name, spec.definition, spec.limits)
    try:
        work_off(study, jobs, spec, report)
        return StudySummary(
            experiment=spec.experiment,
            study=spec.name,
            words=spec.words,
            storage=store.place,
            folder=spec.folder,
            objectives=spec.definition.objectives,
            directions=spec.definition.directions,
            budget=spec.limits.n_trials,
            trials=study.trials(),
        )
    finally:
        study.close()


def work_off(study: Study, jobs: Jobs, spec: StudySpec, report: Report) -> None:
    """Shows the live view while workers make the trials; an end before the budget is explained."""
    pruner = spec.definition.pruner
    link = StudyOfJobs(
        spec.name,
        spec.storage if "://" in spec.storage else str(Path(spec.storage).absolute()),
        spec.reported,
        None if pruner is None else dict(pruner),
    )
    jobs.prepare_jobs(spec.folder, {STUDY: link.to_text()})
    before = study.trials()
    announce(study, spec, before, report)
    done = Counter(status(trial) for trial in latest(before) if trial.state.is_finished())
    with LiveView(
        report,
        spec.limits.n_trials,
        jobs.workers,
        better_end(spec),
        live=not jobs.basic,
        look=LastReports(study),
    ) as view:
        view.skip(done)
        for trial in before:
            if trial.state == TrialState.COMPLETE:
                view.note_best(trial.number, described(trial.params), trial.values)
        workers = Workers(study, Launching(jobs, spec), view)
        workers.run(jobs.workers, jobs.halt)
    if view.counts["failed"] > done["failed"]:  # where jobs are other processes, only we can tell
        Progress.note(1)
    if workers.nothing_works:
        report.line(f"No trial can succeed, so the sweep stops here: {workers.nothing_works}")
        Progress.note(2)
    elif study.given_up:
        report.line(
            f"{counted(study.failures, 'trial')} failed here, more than hydra.sweeper.max_failures="
            f"{spec.limits.max_failures}: the sweep stops here. The same command tries again"
        )
        Progress.note(1)


def announce(study: Study, spec: StudySpec, before: Sequence[FrozenTrial], report: Report) -> None:
    """The lines above the trials: the study, its goal, how far it is, and what other code has made of it."""
    done = sum(trial.state.is_finished() for trial in latest(before))
    pairs = zip(spec.definition.directions, spec.definition.objectives, strict=True)
    goal = " and ".join(f"{direction} {objective}" for direction, objective in pairs)
    state = counted(spec.limits.n_trials, "trial")
    if before:
        state = f"{done} of {state} done"
    retried = f"; retrying {study.retried} that failed" if study.retried else ""
    report.line(f"Study {spec.name}: {goal} by {spec.definition.sampler['name']}; {state}{retried}")
    if sentence := about_older_code(before):
        report.line(sentence)


def better_end(spec: StudySpec) -> str | None:
    """`min` or `max` of a single objective."""
    direction, *others = spec.definition.directions
    return None if others else {"maximize": "max", "minimize": "min"}[direction]


@dataclass(frozen=True)
class Launching:
    """Makes the run of a trial by the launcher; the job's record says how it ended."""

    jobs: Jobs
    spec: StudySpec

    def __call__(self, trial: ClaimedTrial) -> TrialResult:
        index = self.spec.folder / "jobs" / f"{trial.number}.json"
        index.unlink(missing_ok=True)
        overrides = [*self.spec.definition.fixed, *typed(trial.params)]
        problem = self.jobs.launch(trial.number, overrides)
        record = read_json(index)
        if not isinstance(record, dict):
            record = {"overrides": overrides, "status": "failed", "kind": "died"}
            record["reason"] = problem or f"it left no record in {index}"
            index.parent.mkdir(parents=True, exist_ok=True)
            write_json(index, record)
        run = record.get("run")
        if record["status"] != "finished":
            return TrialResult(record["status"], record.get("kind"), record.get("reason"), run=run)
        metrics, objectives = record["metrics"], self.spec.definition.objectives
        if absent := [metric for metric in objectives if metric not in metrics]:
            return TrialResult("failed", "config", f"{NOT_VALIDATED} for {absent[0]}", run=run)
        values = [float(metrics[metric]) for metric in objectives]
        return TrialResult("finished", record.get("kind"), record.get("reason"), values, run)


class LastReports:
    """What running trials have reported last, for the live view, which asks for each row twice a second."""

    EVERY = 2.0  # seconds between looks into the storage

    def __init__(self, study: Study) -> None:
        self.study = study
        self._trials: list[FrozenTrial] = []
        self._at = -math.inf

    def __call__(self, number: int) -> tuple[str, float]:
        if time.monotonic() - self._at > self.EVERY:
            self._at = time.monotonic()
            with contextlib.suppress(Exception):  # a view is not worth an end: the storage may be away
                self._trials = self.study.trials()
        reports = self._trials[number].intermediate_values if number < len(self._trials) else {}
        if not reports:
            return "", 0.0
        permille = max(reports)
        return f"{reports[permille]:.4f} at {permille / 1000:.0%}", permille / 1000


def status(trial: FrozenTrial) -> str:
    """How a trial stands, in the words of result.json."""
    words = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return words.get(trial.state, "running")


def write_best(summary: StudySummary, fixed: Sequence[str], jobs: Jobs, report: Report) -> None:
    """Puts a study's best setting into the file that `tuned=true` reads."""
    best = summary.best
    if best is None:
        return
    precision = next(
        (word.partition("=")[2] for word in summary.words if word.startswith("quantizer=")), None
    ) or str(jobs.config.hydra.runtime.choices.quantizer)
    sources = jobs.config.hydra.runtime.config_sources
    path = write_tuned(summary.experiment, precision, best.params, sources, [*fixed, *summary.words])
    report.line(f"{path}: {precision} has the setting of trial {best.number} of {summary.study}")
