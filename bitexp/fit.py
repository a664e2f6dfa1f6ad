"""The training itself: Lightning's Trainer with our callbacks, from a checkpoint where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging

from bitexp.build import Parts
from bitexp.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, load_checkpoint
from bitexp.callbacks.diagnostics import Diagnostics
from bitexp.callbacks.guard import FiniteLoss, Signals
from bitexp.callbacks.progress import Pace, ProgressBar, ProgressLines
from bitexp.callbacks.randomness import Randomness
from bitexp.callbacks.schedule import Schedule
from bitexp.console import Report
from bitexp.settings import Settings
from bitexp.track.folder import RunFolder
from bitexp.track.metrics import MetricsCsv

PRECISION = {"32": "32-true", "bf16-mixed": "bf16-mixed", "bf16-true": "bf16-true"}


class Fit:
    """One attempt at training: the Trainer, and the callbacks that the road asks afterwards."""

    def __init__(
        self, settings: Settings, parts: Parts, folder: RunFolder, report: Report, signals: Signals, extra: Any
    ) -> None:
        options = settings.callbacks
        self.parts = parts
        self.metrics = MetricsCsv(folder.metrics)
        self.pace = Pace(settings.trainer.log_every)
        self.checkpoints = Checkpoints(folder.checkpoints, options.checkpoint, self.metrics, signals)
        schedule = Schedule(settings.scheduler, settings.optimizer, settings.quantizer.lambda_schedule)
        callbacks: list[pl.Callback] = [Randomness(settings.seed), schedule, FiniteLoss(settings.trainer.log_every)]
        if options.ema_decay is not None:
            callbacks.append(EMAWeightAveraging(decay=options.ema_decay))
        if options.diagnostics and parts.quantizer.quantizes_weights:
            callbacks.append(Diagnostics())
        if (stopping := options.early_stopping) is not None:
            callbacks.append(
                EarlyStopping(stopping.monitor, patience=stopping.patience, mode=stopping.mode, verbose=False)
            )
        callbacks.append(self.pace)
        kind = options.progress
        if kind == "auto":
            kind = "bar" if report.console.is_terminal else "lines"
        if kind == "bar":
            callbacks.append(ProgressBar(report, self.pace, schedule))
        elif kind == "lines":
            callbacks.append(ProgressLines(report, self.pace, schedule))
        callbacks.append(self.checkpoints)
        self.trainer = build_trainer(settings, callbacks, [self.metrics, *([extra] if extra else [])])
        if settings.trainer.compile:
            parts.model.compile()

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, on from `checkpoint` if given; `metrics.csv` is cut back to it."""
        if checkpoint is not None and self.trainer.is_global_zero:
            state = load_checkpoint(checkpoint)["callbacks"][Checkpoints.__qualname__]
            self.metrics.cut_back(state["metrics"])
        path = None if checkpoint is None else str(checkpoint)
        self.trainer.fit(self.parts.task, datamodule=self.parts.data, ckpt_path=path, weights_only=True)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def build_trainer(settings: Settings, callbacks: list[pl.Callback], loggers: list[Any]) -> pl.Trainer:
    """Lightning's Trainer from the `trainer` section."""
    options: Any = settings.trainer
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=PRECISION[options.precision],  # type: ignore[arg-type]
        max_epochs=options.epochs,
        max_steps=-1 if options.max_steps is None else options.max_steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip,
        check_val_every_n_epoch=options.validate_every,
        log_every_n_steps=options.log_every,
        limit_train_batches=options.train_batches,
        limit_val_batches=options.eval_batches,
        num_sanity_val_steps=0,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_autolog_hparams=False,
    )
