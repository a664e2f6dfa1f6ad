"""Training and testing by Lightning: nowhere else is its Trainer known."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from bitexp.common.lightning import pl
from bitexp.common.memory import keep_freed_memory
from bitexp.common.ranks import in_slurm, meet_again, own_environment
from bitexp.config.schema import Settings
from bitexp.run.attempt import Attempt
from bitexp.run.first_batch import calibrate
from bitexp.tasks import Task
from bitexp.track.checkpoint_files import BEST, LAST, state_of, unpacked
from bitexp.track.folder import RunFolder
from bitexp.track.metrics import MetricsCsv
from bitexp.train.checkpoints import AtomicCheckpointIO, Checkpoints
from bitexp.train.diagnostics import Diagnostics
from bitexp.train.guards import FiniteLoss, Signals
from bitexp.train.progress import ProgressBar, ProgressLines, Throughput, measured
from bitexp.train.pruning import Pruner, Pruning
from bitexp.train.randomness import Randomness
from bitexp.train.schedule import Schedule

PLAIN: dict[str, Any] = {
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""What Lightning would do by itself, and our callbacks and loaders do instead."""

PRECISION = {"32": "32-true", "bf16-mixed": "bf16-mixed", "bf16-true": "bf16-true"}


class Fit:
    """One attempt at training: the Trainer, and the callbacks that the road asks afterwards."""

    met: ClassVar[bool] = False
    """Whether this process has trained together with others before."""

    def __init__(
        self, attempt: Attempt, signals: Signals, loggers: Sequence[pl.loggers.Logger], pruner: Pruner | None
    ) -> None:
        """`loggers` get every metric beside metrics.csv."""
        settings, parts, report = attempt.settings, attempt.parts, attempt.report
        options, optimizer = settings.callbacks, settings.optimizer
        every = settings.trainer.log_every
        self.parts, self.report, self.folder = parts, report, attempt.folder
        self.metrics = MetricsCsv(attempt.folder.metrics, attempt.folder.check_lock)
        self.throughput = Throughput(every, attempt.max_steps)
        directions = parts.task.measures
        self.checkpoints = Checkpoints(
            attempt.folder.checkpoints, options.checkpoint, directions, self.metrics, signals
        )
        callbacks: list[pl.Callback] = [Randomness(settings.seed)]
        if options.ema_decay is not None:
            callbacks.append(pl.callbacks.EMAWeightAveraging(decay=options.ema_decay))
        phasing, max_steps = settings.quantizer.lambda_schedule, attempt.max_steps
        staged = parts.quantizer.progressive
        schedule = Schedule(settings.scheduler, optimizer, phasing, max_steps, staged)
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
        callbacks.append(self.throughput)
        kind = options.progress
        if kind == "auto":
            kind = "bar" if report.console.is_terminal else "lines"
        if kind == "bar":
            callbacks.append(ProgressBar(report, self.throughput, schedule))
        elif kind == "lines":
            callbacks.append(ProgressLines(report, self.throughput, schedule))
        callbacks.append(self.checkpoints)
        if pruner is not None:
            callbacks.append(Pruning(pruner, schedule))
        self.trainer = build_trainer(settings, callbacks, [self.metrics, *loggers], attempt.folder)
        if settings.trainer.compile:
            parts.model.compile()

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, on from `checkpoint` if given; `metrics.csv` is again as it was then."""
        if self.trainer.is_global_zero:
            kept = b""
            if checkpoint is not None:
                value = state_of(checkpoint)["metrics"]  # of versions before 2026-12 a length
                kept = self.metrics.content()[:value] if isinstance(value, int) else unpacked(value)
            if not self.metrics.restore(kept):
                self.report.line("metrics.csv did not hold what was measured: made again from the checkpoint")
        keep_freed_memory()
        if checkpoint is None and self.parts.start is not None:
            calibrate(self.parts)
        path = None if checkpoint is None else str(checkpoint)
        task, data = self.parts.task, self.parts.data
        with own_environment():
            if Fit.met:
                meet_again(self.folder.id)
            try:
                self.trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
            finally:
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                    Fit.met = True

    def log(self, metrics: Mapping[str, float]) -> None:
        """Gives what was measured after the training to all loggers."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), self.steps)
            logger.save()

    @property
    def steps(self) -> int:
        """Steps taken, all attempts together."""
        return self.trainer.global_step

    @property
    def monitored(self) -> bool:
        """Whether the best validation's weights are the ones to test, and not the last."""
        return self.checkpoints.best is not None

    @property
    def tested(self) -> Path:
        """The checkpoint of the weights to test."""
        return self.checkpoints.folder / (BEST if self.monitored else LAST)

    @property
    def weights(self) -> str:
        """Which weights were tested, for people."""
        return "best validation" if self.monitored else "last step"

    def validation(self) -> dict[str, float]:
        """What the validation of the tested weights measured."""
        return self.metrics.values("val/", self.checkpoints.best_step if self.monitored else self.steps)

    @property
    def step_ms(self) -> float | None:
        """Milliseconds of a step."""
        return self.metrics.values("time/step_ms").get("time/step_ms")

    @property
    def seconds(self) -> float:
        """Time spent, all attempts together."""
        return self.checkpoints.seconds


def build_trainer(
    settings: Settings, callbacks: list[pl.Callback], loggers: list[Any], folder: RunFolder
) -> pl.Trainer:
    """Lightning's Trainer from the `trainer` section."""
    options: Any = settings.trainer
    return secluded_trainer(
        folder,
        environment(),
        AtomicCheckpointIO(),
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=PRECISION[options.precision],
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip,
        check_val_every_n_epoch=options.validate_every,
        log_every_n_steps=options.log_every,
        limit_train_batches=options.train_batches,
        limit_val_batches=options.eval_batches,
        num_sanity_val_steps=0,
        logger=loggers,
        callbacks=without_empty_hooks(callbacks),
        enable_autolog_hparams=False,
    )


class Unprofiled(pl.profilers.PassThroughProfiler):
    """Lightning profiles every hook of every callback, a hundred times a step, even when nobody looks."""

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return NOTHING


NOTHING = contextlib.nullcontext()

EVERY_BATCH = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip
"""The hooks of a callback that Lightning calls for every batch."""


def without_empty_hooks(callbacks: list[pl.Callback]) -> list[pl.Callback]:
    """Callbacks whose hooks of a batch are None where they do nothing: Lightning passes over these.

    To call them all took some 1 % of a run of the recipes' small models (2026-11, Lightning 2.6).
    """
    for callback in callbacks:
        for hook in EVERY_BATCH:
            if getattr(getattr(callback, hook), "__func__", None) is getattr(pl.Callback, hook):
                setattr(callback, hook, None)
    return callbacks


def secluded_trainer(folder: RunFolder, *plugins: Any, **options: Any) -> pl.Trainer:
    """A Trainer that nothing around it changes: no file of the current folder, no variable of Lightning's.

    Under Slurm, Lightning takes the weights of any `hpc_ckpt_N.ckpt` in its root; ours does not exist.
    """
    ambient = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PL_TRAINER_")}
    try:
        root = folder.checkpoints / ".none"
        own: Any = {"plugins": list(plugins), "profiler": Unprofiled()}
        return pl.Trainer(default_root_dir=root, **own, **options, **PLAIN)
    finally:
        os.environ.update(ambient)


def environment() -> ClusterEnvironment:
    """Who starts the processes that train together; Slurm restarts none by Lightning's own checkpoints."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if in_slurm() and SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def evaluated(attempt: Attempt, task: Task, part: Literal["val", "test"]) -> dict[str, float]:
    """The metrics of a part of the data, in fp32 on one device, by the code as it is written.

    A compiled model may round otherwise than its frozen twin, which is not compiled.
    """
    options = attempt.settings.trainer
    trainer = secluded_trainer(
        attempt.folder,
        LightningEnvironment(),
        accelerator=options.accelerator,
        devices=1,
        precision="32-true",
        logger=False,
        limit_val_batches=options.eval_batches,
        limit_test_batches=options.eval_batches,
    )
    evaluate = trainer.test if part == "test" else trainer.validate
    with torch.compiler.set_stance("force_eager"):
        evaluate(task, datamodule=attempt.parts.data, verbose=False)
    return measured(trainer, f"{part}/")
