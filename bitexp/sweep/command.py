"""One command, one study or several: names them, makes them, and says what they found."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.exit import Progress
from bitexp.common.files import read_json, write_json
from bitexp.common.spelling import nearest
from bitexp.config.schema import read_settings
from bitexp.sweep.findings import Found, say_findings
from bitexp.sweep.live_view import Board
from bitexp.sweep.options import SweeperOptions
from bitexp.sweep.samplers import PerCell, latest, values
from bitexp.sweep.storage import Store
from bitexp.sweep.study import Definition, Direction, Ending, Limits, Mine, Study, build_pruner
from bitexp.sweep.trial_reporter import STUDY, StudyOfJobs
from bitexp.sweep.tuned import check_tunes, write_tuned
from bitexp.sweep.workers import Conductor, described
from bitexp.tasks import TASKS
from bitexp.track.folder import outputs

MEASURED = {
    "size/body_bytes": "min",
    "size/total_bytes": "min",
}
"""What a finished run knows besides the measures of its task, and which end of it is the better one."""

NOT_VALIDATED = "the run was never validated (trainer.validate_every is more than trainer.epochs)"


class Jobs(Protocol):
    """What makes the jobs: Hydra's sweeper with its launcher."""

    config: DictConfig
    workers: int

    @property
    def basic(self) -> bool: ...

    def compose(self, overrides: Sequence[str]) -> DictConfig: ...

    def tell_jobs(self, folder: Path, variables: dict[str, str]) -> None: ...

    def launch(self, number: int, overrides: Sequence[str]) -> str | None: ...

    def halt(self) -> None: ...


def make_studies(
    jobs: Jobs, options: SweeperOptions, fixed: Sequence[str], space: Mapping[str, BaseDistribution]
) -> list[Found]:
    """Makes the study of a command, or one for each value of the keys in `per`.

    Args:
        fixed: the overrides that all trials share; space: what is drawn for each.

    Raises:
        UserError: anything in the command that cannot work, before any trial is made.
    """
    report = Report()
    unknown = [name for name in options.per if name not in space and not given(name, fixed)]
    if unknown:
        raise UserError(
            f"hydra.sweeper.per names {', '.join(unknown)}, which is not swept. Swept: {', '.join(space)}"
        )
    apart = {name: values(space[name]) for name in options.per if name in space}
    drawn = {name: d for name, d in space.items() if name not in apart}
    if not drawn:
        raise UserError(
            "nothing to search: name a key with more than one value, as in "
            "'optimizer.lr=tag(log, interval(1e-4, 1e-1))'"
        )
    if options.write_tuned:
        check_tunes(drawn)
    if options.write_tuned and len(options.objectives) > 1:
        raise UserError("hydra.sweeper.write_tuned=true needs one objective: several have no best trial")
    plans = []
    for row in itertools.product(*apart.values()):
        words = [f"{name}={value}" for name, value in zip(apart, row, strict=True)]
        plans.append(Plan(jobs, options, [*fixed, *words], words, drawn))
    found = []
    for plan in plans:
        result = plan.make(report)
        found.append(result)
        if Progress.worst >= 128:
            break
    say_findings(found, report)
    if options.write_tuned:
        write_best(found, jobs, report)
    return found


class Plan:
    """A study before it is made: all that can be wrong with it is found here."""

    def __init__(
        self,
        jobs: Jobs,
        options: SweeperOptions,
        fixed: Sequence[str],
        words: Sequence[str],
        space: Mapping[str, BaseDistribution],
    ) -> None:
        """`words` are those overrides of `fixed` that set this study apart from others of the command."""
        self.jobs, self.options, self.words = jobs, options, list(words)
        first = {name: first_value(d) for name, d in space.items()}
        config = jobs.compose([*fixed, *typed(first)])
        for name, d in space.items():
            for choice in getattr(d, "choices", ())[1:]:  # a word that no group has is told now, not later
                jobs.compose([*fixed, *typed({**first, name: choice})])
        plain: Any = OmegaConf.to_container(config, resolve=True)
        settings = read_settings(plain)
        self.name = settings.name
        better = {**TASKS.get(settings.task.name).measures, **MEASURED}
        headline = f"val/{TASKS.get(settings.task.name).headline}"
        self.objectives = [headline if m == "headline" else m for m in options.objectives]
        for metric in self.objectives:
            if metric not in better:
                known = ", ".join(["headline", *better])
                raise UserError(
                    f"hydra.sweeper.objectives: '{metric}' is not measured.{nearest(metric, better)} "
                    f"Known: {known}. The test set is no objective: it is looked at once, at the end"
                )
        long: dict[str, Direction] = {"min": "minimize", "max": "maximize"}
        self.directions = options.directions or [long[better[metric]] for metric in self.objectives]
        if len(self.directions) != len(self.objectives):
            raise UserError("hydra.sweeper.directions needs one entry for each of the objectives")
        if options.pruner is not None and len(self.objectives) > 1:
            raise UserError("a study of several objectives cannot prune: set hydra.sweeper.pruner=null")
        if options.pruner is not None and self.objectives[0] in MEASURED:
            raise UserError(f"{self.objectives[0]} is known at the end only: set hydra.sweeper.pruner=null")
        self.definition = Definition(
            fixed, space, self.objectives, self.directions, options.sampler, options.pruner
        )
        PerCell(options.sampler, space)
        build_pruner(options.pruner)
        self.limits = Limits(
            n_trials=self._budget(),
            retries=options.retries,
            max_failures=options.max_failures,
            heartbeat=options.heartbeat,
            lost_after=options.lost_after,
        )
        self.study_name = self._study_name()
        folder = outputs() / self.name / "studies"
        self.folder = folder / self.study_name
        self.storage = options.storage or str(folder / f"{self.study_name}.journal")

    def _budget(self) -> int:
        asked, points = self.options.n_trials, self.definition.points()
        if asked is None and points is None:
            raise UserError(
                f"hydra.sweeper.n_trials=null leaves the end to a sampler that tries each point once "
                f"(BruteForceSampler, GridSampler); {self.options.sampler.get('name')} needs a number"
            )
        return min(count for count in (asked, points) if count is not None)

    def _study_name(self) -> str:
        apart = "-".join(word.partition("=")[2] for word in self.words)
        if self.options.study is not None:
            return "-".join(filter(None, [self.options.study, apart]))
        sweeps: Any = self.jobs.config.hydra.runtime.choices.get("sweeps") or "study"
        return "-".join(filter(None, [str(sweeps), apart, self.definition.digest()]))

    def make(self, report: Report) -> Found:
        """Makes the trials that are missing, and returns what the study holds then."""
        store = Store(self.storage, report.line)
        study = Study(store, self.study_name, self.definition, self.limits)
        try:
            self._work(study, report)
            return Found(
                name=self.name,
                study=self.study_name,
                words=self.words,
                storage=store.place,
                folder=self.folder,
                objectives=self.objectives,
                directions=self.directions,
                budget=self.limits.n_trials,
                trials=study.trials(),
            )
        finally:
            study.close()

    def _work(self, study: Study, report: Report) -> None:
        single = len(self.objectives) == 1
        told = StudyOfJobs(
            self.study_name,
            self.storage if "://" in self.storage else str(Path(self.storage).absolute()),
            self.objectives[0] if single and self.objectives[0] not in MEASURED else "",
            None if self.options.pruner is None else dict(self.options.pruner),
        )
        self.jobs.tell_jobs(self.folder, {STUDY: told.to_text()})
        workers = self.jobs.workers
        before = study.trials()
        self._announce(study, before, report)
        better = {"maximize": "max", "minimize": "min"}[self.directions[0]] if single else None
        budget = self.limits.n_trials
        look = Progresses(study)
        with Board(report, budget, workers, better, live=not self.jobs.basic, look=look) as board:
            done = Counter(status(t) for t in latest(before) if t.state.is_finished())
            board.skip(done)
            for trial in before:
                if trial.state == TrialState.COMPLETE:
                    board.note_best(trial.number, described(trial.params), trial.values)
            conductor = Conductor(study, self._launch, board)
            conductor.conduct(workers, self.jobs.halt)
        if board.counts["failed"] > done["failed"]:  # where jobs are other processes, only we can tell
            Progress.note(1)
        if conductor.nothing_works:
            report.line(f"No trial can work, so the sweep ends here: {conductor.nothing_works}")
            Progress.note(2)
        elif study.given_up:
            report.line(
                f"{study.failures} trials failed here, more than hydra.sweeper.max_failures="
                f"{self.limits.max_failures}: the sweep ends here, and the same command tries again"
            )
            Progress.note(1)

    def _announce(self, study: Study, before: Sequence[FrozenTrial], report: Report) -> None:
        done = sum(trial.state.is_finished() for trial in latest(before))
        goal = " and ".join(f"{d} {m}" for d, m in zip(self.directions, self.objectives, strict=True))
        state = (
            f"{done} of {self.limits.n_trials} trials done" if before else f"{self.limits.n_trials} trials"
        )
        retried = f"; {study.retried} that failed are tried again" if study.retried else ""
        report.line(f"Study {self.study_name}: {goal} by {self.options.sampler['name']}; {state}{retried}")

    def _launch(self, trial: Mine) -> Ending:
        """Makes the run of a trial by the launcher; the job's record says how it ended."""
        index = self.folder / "jobs" / f"{trial.number}.json"
        index.unlink(missing_ok=True)
        overrides = [*self.definition.fixed, *typed(trial.params)]
        problem = self.jobs.launch(trial.number, overrides)
        record = read_json(index)
        if not isinstance(record, dict):
            record = {"overrides": overrides, "status": "failed", "kind": "died"}
            record["reason"] = problem or f"it left no record in {index}"
            index.parent.mkdir(parents=True, exist_ok=True)
            write_json(index, record)
        ending = Ending(record["status"], record.get("kind"), record.get("reason"), run=record.get("run"))
        if ending.status == "finished":
            metrics = record["metrics"]
            if absent := [metric for metric in self.objectives if metric not in metrics]:
                return Ending("failed", "config", f"{NOT_VALIDATED}: no {absent[0]}", run=ending.run)
            ending.values = [float(metrics[metric]) for metric in self.objectives]
        return ending


class Progresses:
    """What running trials have reported last, for the live view, which asks for each row twice a second."""

    EVERY = 2.0  # seconds between looks into the storage

    def __init__(self, study: Study) -> None:
        self.study = study
        self._trials: list[FrozenTrial] = []
        self._at = -math.inf

    def __call__(self, number: int) -> str:
        if time.monotonic() - self._at > self.EVERY:
            self._at = time.monotonic()
            with contextlib.suppress(Exception):  # a view is not worth an end: the storage may be away
                self._trials = self.study.trials()
        values = self._trials[number].intermediate_values if number < len(self._trials) else {}
        if not values:
            return ""
        step = max(values)
        return f"{values[step]:.4f} at {step / 1000:.0%}"


def given(name: str, fixed: Sequence[str]) -> bool:
    """Whether an override sets that key to one value."""
    return any(word.lstrip("+").partition("=")[0] == name.lstrip("+") for word in fixed)


def typed(params: Mapping[str, Any]) -> list[str]:
    """Drawn parameters as overrides."""
    return [f"{name}={value}" for name, value in params.items()]


def first_value(distribution: BaseDistribution) -> Any:
    """Some value that may be drawn."""
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else getattr(distribution, "low", None)


def status(trial: FrozenTrial) -> str:
    """How a trial stands, in the words of result.json."""
    words = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return words.get(trial.state, "running")


def write_best(found: Sequence[Found], jobs: Jobs, report: Report) -> None:
    """Puts each study's best setting into the file that `tuned=true` reads."""
    for study in found:
        best = study.best
        if best is None:
            continue
        precision = next(
            (w.partition("=")[2] for w in study.words if w.startswith("quantizer=")), None
        ) or str(jobs.config.hydra.runtime.choices.quantizer)
        path = write_tuned(study.name, precision, best.params, jobs.config.hydra.runtime.config_sources)
        report.line(f"{path}: {precision} has the setting of trial {best.number} of {study.study}")
