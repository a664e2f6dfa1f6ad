"""Checkpoints that survive: whole or not there, the one before kept, damage found before it is used.

    last.ckpt      after every validation, every so many steps or minutes, and when a signal stops
                   the run
    previous.ckpt  the one before
    best.ckpt      the best validation, where one is monitored
    damaged.ckpt   a last.ckpt that could not be used, for whoever wants to know why

A checkpoint holds tensors and plain values only: nothing in it can execute.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from bitexp.common.errors import Stopped
from bitexp.common.files import write_atomic
from bitexp.common.lightning import pl
from bitexp.config.schema import Checkpoint
from bitexp.track.checkpoint_files import BEST, LAST, NEW, PREVIOUS, STATE, packed
from bitexp.track.metrics import MetricsCsv
from bitexp.train.guards import Signals


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint in one piece."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())


class Checkpoints(pl.Callback):
    """Saves `last.ckpt` and `best.ckpt`, and ends the run on a signal once its state is safe.

    The last callback, so that the others' state is that of the step. On the last batch of an epoch it
    waits for the epoch's end: Lightning would skip a validation that follows upon a checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        settings: Checkpoint,
        directions: Mapping[str, str],
        metrics: MetricsCsv,
        signals: Signals,
    ) -> None:
        """`directions` says of each metric that may be monitored whether `min` or `max` is better."""
        self.folder, self.settings, self.metrics, self.signals = folder, settings, metrics, signals
        self.mode = settings.mode or directions.get(settings.monitor or "")
        self.best: float | None = None
        self.best_step = 0
        self.seconds_before = 0.0
        self._began = self._saved_at = time.monotonic()
        self._candidate = self._due = self._stop = self._stopped_early = False

    @property
    def seconds(self) -> float:
        """Time spent on this run so far, all attempts up to their last checkpoints together."""
        return self.seconds_before + time.monotonic() - self._began

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.catch()  # Lightning has put its own SIGTERM handler in place
        trainer.should_stop = self._stopped_early

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        every, last = self.settings.every_steps, trainer.is_last_batch or trainer.should_stop
        if not (last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0):
            return  # between the batches of one step
        stop = self.signals.received is not None
        save = time.monotonic() - self._saved_at > 60 * self.settings.every_minutes
        if trainer.world_size > 1:  # all ranks save, or none
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            save = trainer.strategy.reduce_boolean_decision(save, all=False)
        save = save or (every is not None and trainer.global_step % every == 0)
        self._due, self._stop = save or stop, stop
        if self._due and not last:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor = self.settings.monitor
        if trainer.sanity_checking or monitor is None or monitor not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[monitor])
        sign = 1 if self.mode == "max" else -1
        if self.best is None or sign * score > sign * self.best:
            self.best, self.best_step, self._candidate = score, trainer.global_step, True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        validated = epochs % (trainer.check_val_every_n_epoch or 1) == 0
        final = epochs == trainer.max_epochs or trainer.should_stop
        if validated or final or self._due:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self.metrics.flush()
        self._stopped_early = trainer.should_stop
        trainer.save_checkpoint(self.folder / NEW)
        if trainer.is_global_zero:
            if self._candidate:  # before last.ckpt, which says that it is there
                write_atomic(self.folder / BEST, (self.folder / NEW).read_bytes())
            if (self.folder / LAST).exists():
                os.replace(self.folder / LAST, self.folder / PREVIOUS)
            os.replace(self.folder / NEW, self.folder / LAST)
        self._candidate = self._due = False
        self._saved_at = time.monotonic()
        if self._stop:
            raise Stopped(self.signals.received or self.signals.KINDS[-1])

    @property
    def state_key(self) -> str:
        return STATE

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_step": self.best_step,
            "metrics": packed(self.metrics.content()),
            "run": self.folder.parent.name,
            "seconds": self.seconds,
            "stopped_early": self._stopped_early,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.seconds_before = state_dict["seconds"]
        self._stopped_early = state_dict["stopped_early"]
