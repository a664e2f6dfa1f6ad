"""One Hydra job: from the composed config to a run, and its line in the index of a multirun."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitexp.common.console import Report, error
from bitexp.common.errors import UserError, describe_crash
from bitexp.common.exit import Progress
from bitexp.common.files import write_json
from bitexp.common.ranks import FOLLOW, global_rank
from bitexp.config.composition_errors import explain
from bitexp.config.schema import read_settings
from bitexp.sweep.processes import JOB, end_with_parent
from bitexp.sweep.trial_reporter import judge_of
from bitexp.sweep.tuned import apply_tuned
from bitexp.track.folder import validation_of

if TYPE_CHECKING:
    from bitexp.run.road import Outcome


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
    record: dict[str, Any] = {"overrides": overrides, "tuned": bool(config.get("tuned"))}
    try:
        apply_tuned(config, hydra, overrides)
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        resolved = {str(key): value for key, value in plain.items()}
        read_settings(resolved)  # before torch is imported: a typo costs no seconds
        outcome = run(resolved, overrides, hydra.job.num if multirun else None)
    except Exception as problem:
        told = isinstance(problem, UserError | OmegaConfBaseException)
        crash = {"kind": "config", "reason": reason(problem)} if told else describe_crash(problem)
        if not multirun and crash["kind"] == "crash":
            raise
        error(f"{', '.join(overrides)}: {crash['reason']}" if multirun else crash["reason"])
        if crash["kind"] == "crash":
            traceback.print_exc()
        Progress.note(2 if told and not multirun else 1)
        if multirun:
            write_record(hydra, {**record, "status": "failed", **crash})
        return None
    result = outcome.result
    stopped = outcome.status == "stopped"
    exit_code = {"finished": 0, "pruned": 0, "failed": 1}.get(outcome.status)
    Progress.note(128 + result["signal"] if exit_code is None else exit_code)
    if multirun and global_rank() == 0:
        record |= {"status": outcome.status, "kind": result["kind"], "reason": result["reason"]}
        record |= {"run": str(outcome.folder), "trained": outcome.trained}
        record |= {key: result.get(key) for key in ("metrics", "headline")}
        write_record(hydra, record)
        if stopped:
            raise KeyboardInterrupt
    return (result.get("metrics") or {}).get(validation_of(str(result.get("headline"))))


def run(config: dict[str, Any], overrides: list[str], number: int | None) -> Outcome:
    """Takes the road; torch and Lightning are imported here, which takes seconds: a terminal is told.

    Args:
        number: of the job in its multirun, None in a single run.
    """
    multirun = number is not None
    report = Report(quiet=global_rank() > 0, brief=multirun)
    with report.console.status("loading torch and Lightning"):
        from bitexp.run.road import run as take_the_road
    judge = None if number is None else judge_of(number, report.line)
    try:
        return take_the_road(config, overrides, report, judge, wait=multirun)
    finally:
        if judge is not None:
            judge.close()


def reason(problem: Exception) -> str:
    """What was wrong with the config, in words."""
    return str(problem) if isinstance(problem, UserError) else explain(problem, sys.argv[1:])


def write_record(hydra: Any, record: dict[str, Any]) -> None:
    """A job's line in the index of its multirun: which run it was and how it ended."""
    folder = Path(hydra.sweep.dir) / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{hydra.job.num}.json", record)


def follow_first() -> int:
    """Another process of a distributed run, started by Lightning: takes the first one's config as it is."""
    from bitexp.run.road import run

    decision = json.loads(os.environ[FOLLOW])
    config = yaml.safe_load((Path(decision["folder"]) / "config.yaml").read_text())
    run(config, [], Report(quiet=True))
    return 0
