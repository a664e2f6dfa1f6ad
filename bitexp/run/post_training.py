"""A run without steps: what it starts from is quantized, calibrated, validated and tested."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from bitexp.common.lightning import pl
from bitexp.quant.layers import set_lambda, set_progress
from bitexp.run.attempt import Attempt
from bitexp.run.checks import device_type
from bitexp.run.first_batch import calibrate as calibrate_activations
from bitexp.run.first_batch import first_samples
from bitexp.run.fit import evaluated
from bitexp.track.checkpoint_files import LAST, STATE, packed, state_of, unpacked
from bitexp.track.metrics import MetricsCsv
from bitexp.train.checkpoints import AtomicCheckpointIO
from bitexp.train.guards import Signals


class PostTraining:
    """One attempt at a run without steps, with what the road asks of `Fit` afterwards."""

    steps = 0
    step_ms = None

    def __init__(self, attempt: Attempt, signals: Signals, loggers: Sequence[pl.loggers.Logger]) -> None:
        """`loggers` get every metric beside metrics.csv."""
        self.attempt, self.signals = attempt, signals
        self.metrics = MetricsCsv(attempt.folder.metrics, attempt.folder.check_lock)
        self.loggers = [self.metrics, *loggers]
        self.tested = attempt.folder.checkpoints / LAST
        self._began, self._before = time.monotonic(), 0.0

    def run(self, checkpoint: Path | None) -> None:
        """Calibrates and validates, and keeps both in a checkpoint, unless there is one."""
        if checkpoint is not None:
            state = state_of(checkpoint)
            self.metrics.restore(unpacked(state["metrics"]))
            self._before = state["seconds"]
            return
        self.metrics.restore(b"")
        task, calibration = self.attempt.parts.task, self.attempt.parts.calibration
        if self.attempt.parts.start is not None:
            calibrate_activations(self.attempt.parts)
        task.float().eval()
        set_lambda(task, 1.0)
        set_progress(task, 1.0)
        if calibration is not None:
            task.to(device_type(self.attempt.settings))
            errors = calibration(task.model, self.inputs(calibration.samples), self.calibrated)
            self.log({f"calibrate/error/{name}": error for name, (_, error) in errors.items()})
            self.log({f"calibrate/nearest_error/{name}": error for name, (error, _) in errors.items()})
        if self.attempt.parts.data.sizes["val"]:
            self.log(evaluated(self.attempt, task, "val"))
        self.save()

    def inputs(self, samples: int) -> list[Tensor]:
        """The first training inputs of the first epoch, in batches; the whole epoch where it has fewer."""
        device = device_type(self.attempt.settings)
        return [inputs.to(device) for inputs, _ in first_samples(self.attempt.parts.data, samples)]

    def calibrated(self, layer: str, before: float, after: float) -> None:
        """Tells of a layer, and ends the run where a signal has come."""
        self.attempt.report.detail(f"{layer}: error {before:.3g} -> {after:.3g}")
        self.signals.check()

    def save(self) -> None:
        """Keeps the weights as a checkpoint of bitexp."""
        ours = {
            "best": None,
            "best_step": 0,
            "metrics": packed(self.metrics.content()),
            "run": self.attempt.folder.id,
            "seconds": self.seconds,
            "stopped_early": False,
        }
        state = self.attempt.parts.task.state_dict()
        content = {"state_dict": state, "epoch": 0, "global_step": 0, "callbacks": {STATE: ours}}
        AtomicCheckpointIO().save_checkpoint(content, self.tested)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Gives what was measured to all loggers."""
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), self.steps)
            logger.save()

    def validation(self) -> dict[str, float]:
        """What the validation of the tested weights measured."""
        return self.metrics.values("val/")

    @property
    def weights(self) -> str:
        """Which weights were tested, for people."""
        name = self.attempt.settings.calibrate.name
        return "as they were loaded" if name == "none" else f"calibrated by {name}"

    @property
    def seconds(self) -> float:
        """Time spent, all attempts together."""
        return self._before + time.monotonic() - self._began
