"""Sets learning rate, weight decay and lambda before every step, as `rates` gives them."""

from __future__ import annotations

from typing import Any

from bitexp.common.lightning import pl
from bitexp.config.optimization import Constant, Cosine, Optimizer, TwoStage
from bitexp.config.schema import LambdaSchedule
from bitexp.quant.layers import set_lambda, set_progress
from bitexp.train.bf16_latents import forget
from bitexp.train.rates import lambda_at, lr_factor, switch_step, weight_decay_at


class Schedule(pl.Callback):
    """Sets learning rate, weight decay, lambda and the quantizer's stage before every batch; the last two
    also before a validation.

    It comes after the averaging of weights, which averages lambda too. It also ends a run after
    `max_steps`: Lightning's own option forgets the rest of a run that resumes at the end of an epoch. And it
    has the last weights validated, whichever epochs are.
    """

    def __init__(
        self,
        scheduler: Cosine | Constant | TwoStage,
        optimizer: Optimizer,
        quantization: LambdaSchedule | None,
        max_steps: int | None = None,
        staged: bool = False,
    ) -> None:
        """`staged` says that the quantizer has stages, or rules that depend on the share of the training."""
        self.scheduler, self.optimizer = scheduler, optimizer
        constant = quantization is None or quantization.name == "constant"
        self.quantization = None if constant else quantization  # a lambda of 1 is what layers begin with
        self.max_steps, self.staged = max_steps, staged
        self._switch: int | None = None
        self.lr = optimizer.lr

    def total(self, trainer: pl.Trainer) -> int:
        """Steps in the whole run."""
        steps = int(trainer.estimated_stepping_batches)
        return min(steps, self.max_steps or steps)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, self.total(trainer)
        self.lr = self.optimizer.lr * lr_factor(self.scheduler, step, total)
        decay = weight_decay_at(self.scheduler, self.optimizer.weight_decay, step, total)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.lr
            group["weight_decay"] = decay if group["decays"] else 0.0
            if "share" in group:
                group["share"] = step / max(1, total)
        self._set_progress(trainer, pl_module)
        if self.quantization is not None and self.quantization.reset_optimizer:
            if self._switch is None:
                self._switch = switch_step(self.quantization, total)
            if step == self._switch:
                forget(trainer.optimizers[0])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.max_steps is not None and trainer.global_step >= self.max_steps:
            trainer.should_stop = True
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._set_progress(trainer, pl_module)

    def _set_progress(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.staged:
            set_progress(pl_module, trainer.global_step / max(1, self.total(trainer)))
        if self.quantization is not None:
            share = lambda_at(self.quantization, trainer.global_step, self.total(trainer))
            set_lambda(pl_module, share)
