"""The road from config to result. Every run, job of a multirun and resumed run takes it:

check -> build -> find the run's folder -> fit -> test -> freeze -> test the packed file -> result.json
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitexp.common.console import Report
from bitexp.common.errors import Diverged, Pruned, Stopped, UserError, describe_crash
from bitexp.common.files import write_json
from bitexp.common.format import shown
from bitexp.common.logs import quiet_libraries
from bitexp.common.ranks import announce, global_rank, inherited, own_environment, wait_for_decision
from bitexp.config.schema import Settings, read_settings
from bitexp.run.attempt import Parts
from bitexp.run.build import build, completed
from bitexp.run.checks import check_validation
from bitexp.run.evaluate import described, evaluate, measured_costs, restore
from bitexp.run.fit import Fit
from bitexp.run.model_card import write_card
from bitexp.run.summary import closing, header, setting_changes
from bitexp.track.checkpoint_files import BEST, LAST, latest_checkpoint
from bitexp.track.folder import RunFolder, is_over, unfinished_runs
from bitexp.track.provenance import provenance, source_fingerprint
from bitexp.track.wandb import tracked_run
from bitexp.train.guards import Signals
from bitexp.train.pruning import Judge
from bitexp.train.rates import lr_decay_sum


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
    config: Mapping[str, Any],
    overrides: Sequence[str],
    report: Report | None = None,
    judge: Judge | None = None,
    wait: bool = False,
) -> Outcome:
    """Makes one run, or finishes it, or finds it finished.

    Args:
        config: the resolved config; overrides: what was typed, for the record; judge: what may prune the
            run; wait: where another process makes this very run, whether to wait for it or to leave.

    Raises:
        UserError: the config, the data or the run's folder cannot be used as they are.
    """
    report = report or Report(quiet=global_rank() > 0)
    settings = read_settings(config)
    quiet_libraries(settings.trainer.threads)
    parts = build(settings)
    settings = completed(settings, parts.quantizer)
    check_validation(settings, parts)
    data = parts.data.fingerprint()
    folder = RunFolder.of(settings, data)
    if global_rank() > 0:
        return follow(settings, parts, folder, report)
    folder.acquire(wait)
    try:
        if (done := finished_before(settings, folder, report)) is not None:
            return done
        if not (settings.rerun or folder.path.exists()):
            check_same_data(settings, data)
        checkpoint, remarks = latest_checkpoint(folder.checkpoints)
        attempt = provenance(settings.seed, settings.trainer.threads, data)
        remarks += setting_changes(folder.attempts(), attempt, resumed=checkpoint is not None)
        folder.begin(settings, overrides, attempt)
        write_json(folder.model, vars(described(parts)))
        with own_environment():
            announce(folder.path, checkpoint, None if judge is None else judge.metric)
            report.keep(folder.path / "train.log")
            header(report, settings, parts, folder, checkpoint, remarks)
            result = attempt_run(settings, parts, folder, report, checkpoint, judge)
        return Outcome(folder.path, result)
    finally:
        report.close()
        folder.release()


def check_same_data(settings: Settings, data: str) -> None:
    """Raises `UserError` where this run was begun on other data and is not finished: nothing is lost."""
    for other in unfinished_runs(settings):
        if other.attempts()[-1].get("data") != data:
            raise UserError(
                f"the data have changed since this run was begun in {shown(other.path)}, where it stands "
                "unfinished. Put the data back as they were, and the same command continues it; "
                "rerun=true begins a new run on the data as they are and leaves that folder as it is"
            )


def finished_before(settings: Settings, folder: RunFolder, report: Report) -> Outcome | None:
    """The earlier outcome where it stands; None when there is something to do."""
    if settings.rerun and folder.path.exists():
        report.line(f"rerun=true: the earlier run is kept in {folder.set_aside()}")
        return None
    result = folder.result()
    if result is None or not is_over(result):
        return None
    if result["source"] != source_fingerprint():
        report.line("This run was made with other source of bitexp; rerun=true makes it new.")
    closing(report, settings, folder, result, trained=False)
    return Outcome(folder.path, result, trained=False)


def attempt_run(
    settings: Settings,
    parts: Parts,
    folder: RunFolder,
    report: Report,
    checkpoint: Path | None,
    judge: Judge | None,
) -> dict[str, Any]:
    """Trains and evaluates; whatever happens, result.json says how it ended."""
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
    began, fit = time.monotonic(), None
    try:
        with Signals() as signals, tracked_run(settings, folder, report) as wandb_logger:
            metric = None if judge is None else judge.metric
            fit = Fit(settings, parts, folder, report, signals, wandb_logger, metric, judge)
            fit.run(checkpoint)
            signals.check()
            result |= measure(settings, parts, folder, fit, report)
            signals.check()
            result["status"] = "finished"
    except Stopped as stop:
        result |= {"status": "stopped", "kind": "signal"}
        result |= {"reason": str(stop), "signal": int(stop.signum)}
    except Pruned as reason:
        result |= {"status": "pruned", "reason": str(reason)}
    except Diverged as reason:
        result |= {"kind": "diverged", "reason": str(reason)}
    except UserError as problem:
        folder.finish({**result, "kind": "config", "reason": str(problem)})
        raise
    except Exception as crash:
        result |= describe_crash(crash)
        if result["kind"] == "crash":
            report.line(traceback.format_exc().rstrip())
    result["seconds"] = round(fit.checkpoints.seconds if fit else time.monotonic() - began, 3)
    result["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        folder.finish(result)
    except OSError as error:
        report.line(f"result.json could not be written: {error}")
    if result["status"] == "finished":
        try:
            write_card(settings, parts, folder, result)
        except Exception as error:  # the result stands without it
            report.line(f"the model card could not be written: {error}")
    closing(report, settings, folder, result, trained=True)
    return result


def measure(settings: Settings, parts: Parts, folder: RunFolder, fit: Fit, report: Report) -> dict[str, Any]:
    """Tests the weights that count: the best validation's where one is monitored, else the last."""
    best = folder.checkpoints / BEST
    monitored = settings.callbacks.checkpoint.monitor is not None and best.exists()
    restore(parts, best if monitored else folder.checkpoints / LAST)
    metrics = evaluate(settings, parts, folder)
    try:
        metrics |= measured_costs(parts)
    except Exception as error:  # of whatever model: the result counts more than its costs
        report.line(f"the costs of an inference could not be measured: {error}")
    validation = fit.metrics.values("val/", fit.checkpoints.best_step if monitored else None)
    for logger in fit.trainer.loggers:
        logger.log_metrics(metrics, fit.trainer.global_step)
        logger.save()
    return {
        "metrics": {**validation, **metrics},
        "headline": f"test/{parts.task.headline}",
        "better": parts.task.measures[f"val/{parts.task.headline}"],
        "lr_decay_sum": lr_decay_sum(settings.scheduler, settings.optimizer, fit.schedule.total(fit.trainer)),
        "steps": fit.trainer.global_step,
        "weights": "best validation" if monitored else "last step",
        "kernel": parts.kernel_name,
        "unit": parts.task.unit,
        "step_ms": fit.metrics.values("time/step_ms").get("time/step_ms"),
    }


def follow(settings: Settings, parts: Parts, folder: RunFolder, report: Report) -> Outcome:
    """Another process of a distributed run: trains along with the first, and leaves the rest to it."""
    decision = inherited() or wait_for_decision(folder.path)
    if decision is not None:
        checkpoint = decision["checkpoint"]
        with Signals() as signals, contextlib.suppress(Stopped, Diverged, Pruned):
            mine = RunFolder(Path(decision["folder"]))
            fit = Fit(settings, parts, mine, report, signals, None, decision["judged_by"])
            fit.run(None if checkpoint is None else Path(checkpoint))
    return Outcome(folder.path, {"status": "finished"})
