"""Ends a run that its study prunes, after the checkpoint, on all ranks at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bitexp.common.errors import Pruned
from bitexp.common.lightning import pl
from bitexp.train.schedule import Schedule


class Pruner(Protocol):
    """What may end a run early: a study that the run is a trial of."""

    @property
    def metric(self) -> str:
        """What it decides by: one of the task's measures."""

    def __call__(self, value: float, permille: int) -> bool:
        """Whether to prune, at that value of the metric after so many thousandths of the steps."""


@dataclass(frozen=True)
class Elsewhere:
    """The pruner of all ranks but the first, which alone asks the study: it ends nothing by itself."""

    metric: str

    def __call__(self, value: float, permille: int) -> bool:
        return False


class Pruning(pl.Callback):
    """Asks the pruner after every validation; the first process decides, and all of them obey.

    It stands behind the checkpoints, so that a pruned run can still be finished later.
    """

    def __init__(self, pruner: Pruner, schedule: Schedule) -> None:
        self.pruner, self.schedule = pruner, schedule
        self._reason = ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        total = self.schedule.total(trainer)
        share = round(1000 * trainer.global_step / total)
        value = float(trainer.callback_metrics[self.pruner.metric])
        reason = ""
        if self.pruner(value, share) and trainer.global_step < total:
            reason = f"{self.pruner.metric} {value:.4f} after {share / 1000:.0%} of the steps"
        self._reason = trainer.strategy.broadcast(reason)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._reason and not trainer.should_stop:
            raise Pruned(self._reason)
