"""One Hydra job: from the composed config to a run, and its line in the index of a multirun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitexp.common.console import Report, error, trace
from bitexp.common.errors import UserError, describe_crash
from bitexp.common.exit import Progress
from bitexp.common.files import write_json
from bitexp.common.imports import uncollected
from bitexp.common.ranks import FOLLOW, global_rank, in_slurm
from bitexp.config.composition_errors import explain
from bitexp.config.schema import Settings, read_settings
from bitexp.config.tuned import apply_tuned
from bitexp.sweep.live_view import LiveView
from bitexp.sweep.options import check_folder
from bitexp.sweep.processes import JOB, end_with_parent
from bitexp.sweep.trial_reporter import reporter_of
from bitexp.sweep.turns import WAITING
from bitexp.track.folder import validation_of

if TYPE_CHECKING:
    from bitexp.run.road import Outcome


@dataclass(frozen=True)
class JobRecord:
    """A job's line in the index of its multirun: which run it was and how it ended."""

    overrides: list[str]
    tuned: bool
    status: str
    kind: str | None
    reason: str | None
    run: str | None = None
    trained: bool = False
    metrics: dict[str, float] | None = None
    headline: str | None = None

    @staticmethod
    def of(outcome: Outcome, overrides: list[str], tuned: bool) -> JobRecord:
        """Of a job that made its run, or found it made."""
        result = outcome.result
        ended = (outcome.status, result["kind"], result["reason"], str(outcome.folder), outcome.trained)
        return JobRecord(overrides, tuned, *ended, result.get("metrics"), result.get("headline"))

    def write(self, hydra: Any) -> None:
        """Into the folder of the multirun, by the job's number."""
        folder = Path(hydra.sweep.dir) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{hydra.job.num}.json", asdict(self))


def make(config: DictConfig) -> float | None:
    """Makes the run of a job. In a multirun nothing but Ctrl-C escapes: the outcome is recorded.

    Returns:
        what a sweeper optimizes: the validation of the task's headline; None where there is none.
    """
    Progress.started = True
    hydra = HydraConfig.get()
    end_with_parent()
    multirun = hydra.mode == RunMode.MULTIRUN or JOB in os.environ
    typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    overrides = [str(word) for word in typed]
    tuned = bool(config.get("tuned"))
    try:
        settings = resolve(config, hydra, overrides)
        outcome = run(settings, overrides, hydra.job.num if multirun else None)
    except Exception as problem:
        if getattr(problem, "kind", None) == WAITING:
            place = str(getattr(problem, "folder", ""))
            JobRecord(overrides, tuned, WAITING, WAITING, str(problem), place).write(hydra)
            return None
        failure = describe_failure(problem, overrides)
        if not multirun and failure["kind"] == "crash":
            raise
        if LiveView.here is None or failure["kind"] == "crash":  # else it tells of every job
            print_failure(failure, overrides if multirun else [])
        mendable = failure["kind"] in ("config", "damaged", "surroundings")
        Progress.note(2 if mendable and not multirun else 1)
        if multirun:
            JobRecord(overrides, tuned, "failed", failure["kind"], failure["reason"]).write(hydra)
        return None
    Progress.note(exit_code(outcome))
    if multirun and global_rank() == 0:
        JobRecord.of(outcome, overrides, tuned).write(hydra)
        if outcome.status == "stopped":
            from bitexp.run.slurm import hand_on

            hand_on(outcome.result["signal"])  # else Hydra begins no other job
    return (outcome.result.get("metrics") or {}).get(validation_of(str(outcome.result.get("headline"))))


def resolve(config: DictConfig, hydra: Any, overrides: list[str]) -> Settings:
    """The settings of a job, with the tuned learning rate where asked for.

    Raises:
        UserError: what cannot be, before torch is imported: a typo costs no seconds.
    """
    check_folder(hydra)
    swept = [key for key in hydra.sweeper.get("params") or {} if not chosen(key, overrides)]
    if hydra.mode == RunMode.RUN and JOB not in os.environ and swept:
        sweep = hydra.runtime.choices.get("sweeps")
        names = f"+sweeps={sweep}" if sweep else "hydra.sweeper.params"
        raise UserError(
            f"{names} names many runs, and without -m there is one. Type -m: python -m bitexp -m "
            f"{' '.join(overrides)}. A single run of them needs a value "
            f"for {' and '.join(swept)}"
        )
    apply_tuned(config, hydra, overrides)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = read_settings({str(key): value for key, value in plain.items()})
    check_distilled(settings, overrides)
    return settings


def chosen(key: str, overrides: Sequence[str]) -> bool:
    """Whether a value was typed for a key."""
    return any(word.lstrip("+").partition("=")[0] == key.lstrip("+") for word in overrides)


def check_distilled(settings: Settings, overrides: Sequence[str]) -> None:
    """Raises `UserError` for what was typed about a teacher where none was named, or switched off."""
    typed = [word for word in overrides if word.lstrip("+").startswith("distill.")]
    named = any(word.lstrip("+").startswith(("distill.teacher=", "distill.teacher.")) for word in typed)
    if settings.distill is None and typed and not named:
        raise UserError(
            f"{typed[0]} does nothing without a teacher: name one with distill.teacher=RUN, or leave it out"
        )


def run(settings: Settings, overrides: list[str], number: int | None) -> Outcome:
    """Takes the road; torch and Lightning are imported here, which takes seconds: a terminal is told.

    Args:
        number: of the job in its multirun, None in a single run.
    """
    multirun = number is not None
    place = None if LiveView.here is None else LiveView.here.place
    report = Report(quiet=global_rank() > 0, brief=multirun, place=place)
    with report.console.status("loading torch and Lightning"), uncollected():
        from bitexp.run.road import run as take_the_road
    reporter = None if number is None else reporter_of(number, report.line)
    try:
        # else its place would be held by a job that waits for another's run
        gives_way = multirun and (JOB in os.environ or in_slurm())
        try:
            return take_the_road(settings, overrides, report, reporter, wait=multirun, gives_way=gives_way)
        except UserError as problem:
            if problem.kind != WAITING or JOB in os.environ:
                raise
            from bitexp.run.slurm import come_again

            come_again(report)
            return take_the_road(settings, overrides, report, reporter, wait=multirun)
    finally:
        if reporter is not None:
            reporter.close()


def exit_code(outcome: Outcome) -> int:
    """0 for a run that ended as it should, 1 for one that failed, 128 and more for one that was stopped."""
    if outcome.status == "stopped":
        return 128 + int(outcome.result["signal"])
    return 1 if outcome.status == "failed" else 0


def describe_failure(problem: Exception, overrides: list[str]) -> dict[str, str]:
    """Kind and reason of what kept a job from its run: `config` is what the user can mend."""
    if isinstance(problem, UserError):
        return {"kind": problem.kind, "reason": str(problem)}
    if isinstance(problem, OmegaConfBaseException):
        return {"kind": "config", "reason": explain(problem, overrides)}
    return describe_crash(problem)


def print_failure(failure: dict[str, str], overrides: list[str]) -> None:
    """On stderr, after the words of its job where there are several; a crash with its traceback."""
    error(f"{', '.join(overrides)}: {failure['reason']}" if overrides else failure["reason"])
    if failure["kind"] == "crash":
        trace(*sys.exc_info())


def follow_first() -> int:
    """Another process of a distributed run, started by Lightning: takes the first one's config as it is."""
    from bitexp.run.road import run

    decision = json.loads(os.environ[FOLLOW])
    config = yaml.safe_load((Path(decision["folder"]) / "config.yaml").read_text(encoding="utf-8"))
    run(config, [], Report(quiet=True))
    return 0
