"""The road from config to result. Every run, job of a multirun and resumed run takes it:

check -> build -> find the run's folder -> fit -> test -> freeze -> test the packed file -> result.json
"""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitexp.common.console import Report
from bitexp.common.errors import Diverged, Pruned, Stopped, UserError, describe_crash
from bitexp.common.files import write_json
from bitexp.common.format import path_text
from bitexp.common.logs import quiet_libraries
from bitexp.common.ranks import announce, global_rank, inherited, own_environment, wait_for_decision
from bitexp.config.schema import Settings, read_settings
from bitexp.deploy.sources.runs import Run as SourceRun
from bitexp.run.advice import advice
from bitexp.run.attempt import Attempt
from bitexp.run.build import build, completed
from bitexp.run.chain import Need, needed, with_source
from bitexp.run.checks import check_validation, device_name, device_type
from bitexp.run.distill import teach, teacher_record
from bitexp.run.earlier import Earlier
from bitexp.run.energy import TRAINING, meter
from bitexp.run.evaluate import evaluate, measured_costs, restore
from bitexp.run.fit import Fit
from bitexp.run.messages import closing, code_remarks, header, margin_remarks, setting_changes
from bitexp.run.named import named_classes
from bitexp.run.parts import Parts
from bitexp.run.post_training import PostTraining
from bitexp.run.slurm import requeue
from bitexp.run.start_checks import check_as_before, check_vocabulary
from bitexp.run.teacher_checks import check_same_teacher
from bitexp.run.tidy import may_tidy, tidy
from bitexp.track.checkout import keep_uncommitted
from bitexp.track.checkpoint_files import best_checkpoint, latest_checkpoint
from bitexp.track.code import code_of, packages_of
from bitexp.track.folder import RunFolder, Taken
from bitexp.track.lineage import ancestors
from bitexp.track.packages import keep_packages
from bitexp.track.provenance import provenance, source_fingerprint
from bitexp.track.tracking import tracking
from bitexp.track.unfinished import note_kind, unfinished_runs
from bitexp.train.guards import Signals
from bitexp.train.pruning import Elsewhere, Pruner


@dataclass
class Outcome:
    """How a run ended. `result` is result.json; `trained` is False when it was there before."""

    folder: Path
    result: dict[str, Any] = field(default_factory=dict)
    trained: bool = True

    @property
    def status(self) -> str:
        """finished, failed, pruned or stopped."""
        return str(self.result.get("status", "stopped"))


def run(
    config: Settings | Mapping[str, Any],
    overrides: Sequence[str],
    report: Report | None = None,
    pruner: Pruner | None = None,
    wait: bool = False,
    gives_way: bool = False,
    first: Callable[[Parts], None] = lambda parts: None,
) -> Outcome:
    """Makes one run, or finishes it, or finds it finished.

    Args:
        config: resolved, checked already or not.
        overrides: what was typed, for the record.
        pruner: what may end the run early.
        wait: where another process makes this very run, whether to wait for it or to leave.
        gives_way: where another process makes a run that this one needs, whether to leave or to wait for it.
        first: called before anything is trained; what it raises ends the run.

    Raises:
        UserError: the config, the data or the run's folder cannot be used as they are.
        Waiting: see `gives_way`.
    """
    report = report or Report(quiet=global_rank() > 0)
    settings = config if isinstance(config, Settings) else read_settings(config)
    quiet_libraries(settings.trainer.threads)
    for key, choice in needed(settings):
        before = Need(key, settings, overrides, report, run, gives_way).made(choice)
        if before.status == "stopped":
            return before
        settings = with_source(settings, key, before.folder)
    parts = build(settings)
    settings = completed(settings, parts.quantizer, parts.start, parts.teacher)
    check_validation(settings, parts, None if pruner is None else pruner.metric)
    if parts.start is not None and "embed.weight" not in parts.start.new:
        check_vocabulary(parts.start.source, parts.data)
    data, named = parts.data.fingerprint(), named_classes(settings, parts)
    code = code_of(named)
    folder = RunFolder.of(settings, data, code.digests)
    attempt = Attempt(settings, tuple(overrides), parts, folder, report)
    if (earlier := Earlier.of(attempt)).stands and inherited() is None and not may_tidy(attempt):
        return Outcome(folder.path, earlier.tell(), trained=False)  # without a lock: nothing is written
    teach(settings, parts, data)
    teacher = teacher_record(settings, parts)
    if global_rank() > 0:
        return follow(attempt)
    first(parts)
    folder.acquire(wait)
    try:
        if (earlier := Earlier.of(attempt)).stands:  # another process has made it meanwhile
            result = earlier.tell()
            tidy(attempt, result)
            return Outcome(folder.path, result, trained=False)
        remarks = earlier.make_way()
        if not (settings.rerun or folder.path.exists()):
            remarks += others_unfinished(settings, data)
        checkpoint, damages = latest_checkpoint(folder.checkpoints)
        if checkpoint is not None:
            if parts.start is not None:
                check_as_before(settings.start.source, parts.start.digest, folder.attempts())
            check_same_teacher(teacher, folder.attempts())
            damages += best_checkpoint(folder.checkpoints, checkpoint)
        facts = {
            "kernel": parts.kernel_name,
            "device": device_name(settings),
            "rerun": bool(settings.rerun),
            "code": code.digests,
            "files": code.files,
            **({"teacher": teacher} if teacher else {}),
            "uncommitted": keep_uncommitted(folder.created(), packages_of(named)),
            **({} if parts.start is None else {"start": parts.start.record()}),
            "ancestors": ancestors(runs_before(parts)),
            "margin": settings.report.margin,
        }
        keep_packages(folder.path)
        record = provenance(settings.seed, settings.trainer.threads, data, facts)
        remarks += [*damages, *code_remarks(code), *advice(settings, parts)]
        remarks += setting_changes(folder.attempts(), record, resumed=checkpoint is not None)
        remarks += margin_remarks(folder.attempts(), settings.report.margin)
        note_kind(folder, record)
        folder.begin(settings, overrides, record)
        write_json(folder.model, vars(attempt.description))
        with own_environment():
            announce(
                folder.path, checkpoint, None if pruner is None else pruner.metric, attempt.world_size - 1
            )
            report.keep(folder.path / "train.log")
            header(attempt, checkpoint, remarks)
            result = make(attempt, checkpoint, pruner)
            if settings.callbacks.checkpoint.requeue and result.get("signal") == signal.SIGUSR1:
                requeue(report)
        return Outcome(folder.path, result)
    finally:
        report.close()
        folder.release()


def others_unfinished(settings: Settings, data: str) -> list[str]:
    """Remarks about unfinished runs of these settings by other code.

    Raises:
        UserError: this run was started on other data and is not finished: nothing is lost.
    """
    remarks = []
    for other in unfinished_runs(settings):
        if not any(other.checkpoints.glob("*")):
            continue  # it made no step that was kept: there is nothing to continue
        if other.attempts()[-1].get("data") != data:
            raise UserError(
                f"the data have changed since this run was started in {path_text(other.path)}, and it is not "
                "finished. Restore the data and the same command continues it, or use rerun=true to start "
                "a new run on the data as they are now, which leaves that folder untouched"
            )
        remarks.append(f"{path_text(other.path)} is unfinished and of other code: it stays as it is")
    return remarks


def make(attempt: Attempt, checkpoint: Path | None, pruner: Pruner | None) -> dict[str, Any]:
    """Trains and evaluates; whatever happens, result.json says how it ended."""
    settings, folder, report = attempt.settings, attempt.folder, attempt.report
    result: dict[str, Any] = {
        "status": "failed",
        "kind": None,
        "reason": None,
        "name": settings.name,
        "id": folder.id,
        "seed": settings.seed,
        "quantizer": settings.quantizer.name,
        "source": source_fingerprint(),
    }
    began = time.monotonic()
    fit: Fit | PostTraining | None = None
    try:
        with Signals() as signals, tracking(attempt.parts.trackers, settings, folder, report) as loggers:
            if attempt.steps:
                fit = Fit(attempt, signals, loggers, pruner)
            else:
                fit = PostTraining(attempt, signals, loggers)
            with meter(device_type(settings)).measure() as spent:
                fit.run(checkpoint)
            signals.check()
            result |= measure(attempt, fit)
            if spent.joules is not None and checkpoint is None:
                result["metrics"][TRAINING] = spent.joules
            signals.check()
            result["status"] = "finished"
    except Stopped as stop:
        result |= {"status": "stopped", "kind": "signal"}
        result |= {"reason": str(stop), "signal": int(stop.signum)}
    except Pruned as reason:
        result |= {"status": "pruned", "reason": str(reason)}
    except Diverged as reason:
        result |= {"kind": "diverged", "reason": str(reason)}
    except Taken:
        raise
    except UserError as problem:
        folder.finish({**result, "kind": problem.kind, "reason": str(problem)})
        raise
    except Exception as crash:
        result |= describe_crash(crash)
        if result["kind"] == "crash":
            report.line(traceback.format_exc().rstrip())
    result["seconds"] = round(fit.seconds if fit else time.monotonic() - began, 3)
    result["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder.finish(result)
    except OSError as error:
        report.line(f"result.json could not be written: {error}")
    tidy(attempt, result)
    closing(attempt, result, trained=True)
    return result


def runs_before(parts: Parts) -> list[RunFolder]:
    """The folders of the runs that this one starts from, or learns from."""
    sources = [None if parts.start is None else parts.start.source, parts.teacher]
    return [source.folder for source in sources if isinstance(source, SourceRun)]


def measure(attempt: Attempt, fit: Fit | PostTraining) -> dict[str, Any]:
    """Tests the weights that count: the best validation's where one is monitored, else the last."""
    parts = attempt.parts
    restore(parts, fit.tested)
    metrics = evaluate(attempt)
    try:
        metrics |= measured_costs(parts)
    except Exception as error:  # of whatever model: the result counts more than its costs
        reason = describe_crash(error)["reason"]
        attempt.report.line(f"the cost of inference could not be measured: {reason}")
    validation = fit.validation()
    fit.log(metrics)
    return {
        "metrics": {**validation, **metrics},
        "headline": f"test/{parts.task.headline}",
        "better": parts.task.measures[f"val/{parts.task.headline}"],
        "lr_decay_sum": attempt.lr_decay_sum,
        "steps": fit.steps,
        "weights": fit.weights,
        "kernel": parts.kernel_name,
        "unit": parts.task.unit,
        "step_ms": fit.step_ms,
    }


def follow(attempt: Attempt) -> Outcome:
    """Another process of a distributed run: trains along with the first, and leaves the rest to it."""
    folder = attempt.folder
    decision = inherited() or wait_for_decision(folder.path, lambda: Earlier.of(attempt).stands)
    if decision is not None:
        checkpoint, metric = decision["checkpoint"], decision["pruned_by"]
        with Signals() as signals, contextlib.suppress(Stopped, Diverged, Pruned):
            attempt = replace(attempt, folder=RunFolder(Path(decision["folder"])))
            fit = Fit(attempt, signals, [], None if metric is None else Elsewhere(metric))
            fit.run(None if checkpoint is None else Path(checkpoint))
    return Outcome(attempt.folder.path, {"status": "finished"})
