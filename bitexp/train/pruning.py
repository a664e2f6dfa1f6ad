"""Ends a run that its study has given up on, after the checkpoint, on all ranks at once."""

from __future__ import annotations

from typing import Protocol

from bitexp.common.errors import Pruned
from bitexp.common.lightning import pl
from bitexp.train.schedule import Schedule


class Judge(Protocol):
    """What may end a run before its time: a study that the run is a trial of."""

    metric: str
    """What it judges by: one of the task's measures."""

    def __call__(self, value: float, permille: int) -> bool:
        """Whether to give up, at that value of the metric after so many thousandths of the steps."""


class Pruning(pl.Callback):
    """Asks the judge after every validation; the first process asks, and all of them obey.

    It stands behind the checkpoints, so that a run that was given up can still be finished later.
    """

    def __init__(self, metric: str, judge: Judge | None, schedule: Schedule) -> None:
        """`judge` is None on all ranks but the first."""
        self.metric, self.judge, self.schedule = metric, judge, schedule
        self._reason = ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        reason = ""
        if self.judge is not None:
            total = self.schedule.total(trainer)
            share = round(1000 * trainer.global_step / total)
            value = float(trainer.callback_metrics[self.metric])
            if self.judge(value, share) and trainer.global_step < total:
                reason = f"{self.metric} {value:.4f} after {share / 1000:.0%} of the steps"
        self._reason = trainer.strategy.broadcast(reason)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._reason and not trainer.should_stop:
            raise Pruned(self._reason)
