"""The training itself: Lightning's Trainer with our callbacks, from a checkpoint where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bitexp.common.console import Report
from bitexp.common.lightning import pl
from bitexp.common.ranks import own_environment
from bitexp.config.schema import Settings
from bitexp.run.attempt import Parts
from bitexp.track.checkpoint_files import STATE, load_checkpoint
from bitexp.track.folder import RunFolder
from bitexp.track.metrics import MetricsCsv
from bitexp.train.checkpoints import AtomicCheckpointIO, Checkpoints
from bitexp.train.diagnostics import Diagnostics
from bitexp.train.guards import FiniteLoss, Signals
from bitexp.train.progress import Pace, ProgressBar, ProgressLines
from bitexp.train.pruning import Judge, Pruning
from bitexp.train.randomness import Randomness
from bitexp.train.schedule import Schedule

PRECISION = {"32": "32-true", "bf16-mixed": "bf16-mixed", "bf16-true": "bf16-true"}


class Fit:
    """One attempt at training: the Trainer, and the callbacks that the road asks afterwards."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        folder: RunFolder,
        report: Report,
        signals: Signals,
        extra: Any,
        judged_by: str | None = None,
        judge: Judge | None = None,
    ) -> None:
        """`judged_by` names the metric that a study prunes by; the first rank has the judge."""
        options, optimizer = settings.callbacks, settings.optimizer
        every = settings.trainer.log_every
        self.parts = parts
        self.metrics = MetricsCsv(folder.metrics)
        self.pace = Pace(every)
        directions = parts.task.measures
        self.checkpoints = Checkpoints(
            folder.checkpoints, options.checkpoint, directions, self.metrics, signals
        )
        callbacks: list[pl.Callback] = [Randomness(settings.seed)]
        if options.ema_decay is not None:
            callbacks.append(pl.callbacks.EMAWeightAveraging(decay=options.ema_decay))
        phasing, max_steps = settings.quantizer.lambda_schedule, settings.trainer.max_steps
        staged = bool(settings.quantizer.stages)
        schedule = self.schedule = Schedule(settings.scheduler, optimizer, phasing, max_steps, staged)
        callbacks += [schedule, FiniteLoss(every)]
        if options.diagnostics and parts.quantizer.quantizes:
            callbacks.append(Diagnostics())
        if (stopping := options.early_stopping) is not None:
            # at validation, since at the end of an epoch it would come after the checkpoint
            mode = stopping.mode or directions[stopping.monitor]
            rule: dict[str, Any] = {"patience": stopping.patience, "mode": mode}
            callbacks.append(
                pl.callbacks.EarlyStopping(stopping.monitor, check_on_train_epoch_end=False, **rule)
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
        if judged_by is not None:
            callbacks.append(Pruning(judged_by, judge, schedule))
        loggers = [self.metrics, *([extra] if extra else [])]
        self.trainer = build_trainer(settings, callbacks, loggers)
        if settings.trainer.compile:
            parts.model.compile()

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, on from `checkpoint` if given; `metrics.csv` is cut back to it."""
        if self.trainer.is_global_zero:
            end = 0
            if checkpoint is not None:
                end = load_checkpoint(checkpoint)["callbacks"][STATE]["metrics"]
            self.metrics.cut_back(end)
        path = None if checkpoint is None else str(checkpoint)
        task, data = self.parts.task, self.parts.data
        with own_environment():
            try:
                self.trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
            finally:
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
