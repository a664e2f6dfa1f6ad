"""Checkpoints that survive: whole or not there, the one before kept, damage found before it is used.

    last.ckpt      after every validation, every so many steps or minutes, and when a signal stops the run
    previous.ckpt  the one before
    best.ckpt      the best validation, where one is monitored
"""

from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from bitexp.callbacks.guard import Signals, Stopped
from bitexp.errors import UserError
from bitexp.files import write_atomic
from bitexp.settings import Checkpoint
from bitexp.track.metrics import MetricsCsv

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint in one piece; an existing `last.ckpt` becomes `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        if target.name == LAST and target.exists():
            scrap = target.with_name(f".{PREVIOUS}.link")
            scrap.unlink(missing_ok=True)
            os.link(target, scrap)
            os.replace(scrap, target.with_name(PREVIOUS))
        write_atomic(target, buffer.getvalue())


class Checkpoints(pl.Callback):
    """Saves `last.ckpt` and `best.ckpt`, and ends the run on a signal once its state is safe."""

    def __init__(self, folder: Path, settings: Checkpoint, metrics: MetricsCsv, signals: Signals) -> None:
        self.folder, self.settings, self.metrics, self.signals = folder, settings, metrics, signals
        self.best: float | None = None
        self.best_step = 0
        self._saved_at = time.monotonic()
        self._candidate = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.catch()  # Lightning has put its own SIGTERM handler in place

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.settings.every_steps
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = time.monotonic() - self._saved_at > 60 * self.settings.every_minutes
        stop, save = self.signals.received is not None, due and stepped
        if trainer.world_size > 1:  # all ranks save, or none
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            save = trainer.strategy.reduce_boolean_decision(save, all=False)
        if every is not None and stepped and trainer.global_step % every == 0:
            save = True
        if (stop and stepped) or save:
            self._save(trainer)
        if stop and stepped:
            raise Stopped(self.signals.received or self.signals.KINDS[-1])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor = self.settings.monitor
        if trainer.sanity_checking or monitor is None:
            return
        if monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
            raise UserError(f"callbacks.checkpoint.monitor={monitor} is not measured. Known: {known}")
        score = float(trainer.callback_metrics[monitor])
        sign = 1 if self.settings.mode == "max" else -1
        if self.best is None or sign * score > sign * self.best:
            self.best, self.best_step, self._candidate = score, trainer.global_step, True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        validated = epochs % (trainer.check_val_every_n_epoch or 1) == 0
        steps_done = 0 <= trainer.max_steps <= trainer.global_step
        final = epochs == trainer.max_epochs or trainer.should_stop or steps_done
        if validated or final:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self.metrics.flush()
        trainer.save_checkpoint(self.folder / LAST)
        if self._candidate and trainer.is_global_zero:
            scrap = self.folder / f".{BEST}"
            shutil.copyfile(self.folder / LAST, scrap)
            os.replace(scrap, self.folder / BEST)
        self._candidate = False
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "metrics": self.metrics.position()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None. Checks the length and every record's CRC."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
            return None if record is None else f"record {record} is corrupt"
    except FileNotFoundError:
        return "missing"
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"not readable ({error})"


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and remarks about damaged ones.

    Raises:
        UserError: there are checkpoints, and all of them are damaged: never a silent restart.
    """
    remarks = []
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in found:
        if (reason := damage(path)) is None:
            return path, remarks
        remarks.append(f"{path.name} is damaged: {reason}")
    if found:
        raise UserError(
            f"no checkpoint in {folder} can be used: {'; '.join(remarks)}. Nothing was changed; "
            "rerun=true starts this run anew and keeps the old folder aside"
        )
    return None, remarks


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors and plain values only (nothing in it can execute)."""
    return torch.load(path, map_location="cpu", weights_only=True)
