"""What one sees while a run trains: a bar on a terminal, one calm line per validation elsewhere."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from torch import Tensor

from bitexp.common.console import Report
from bitexp.common.format import duration
from bitexp.common.lightning import pl
from bitexp.track.metrics import send
from bitexp.train.schedule import Schedule

LINES = 20  # about so many in a whole run


class Throughput(pl.Callback):
    """Sends what the task measured to the loggers, with `time/step_ms` and `time/UNIT_per_second`.

    Training every so many steps and at its end or an epoch's, as means over the batches since the last
    time; validation after it; both under the number of steps taken. Lightning's own logging writes a batch's
    metrics only after the hooks that save a checkpoint, so a resumed run would lack them, and numbers a
    validation by the step before.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.loss: float | None = None
        self.step_seconds: float | None = None
        self._mark = (0, 0.0)
        self._amount = 0
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        self._mark, self._amount = (trainer.global_step, time.monotonic()), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, now = trainer.global_step, time.monotonic()
        mark, then = self._mark
        self._amount += pl_module.amount(batch)  # type: ignore[operator]
        whole = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning has divided it
        terms: dict[str, Tensor] = pl_module.terms  # type: ignore[assignment]
        for name, value in {"loss": whole, **terms}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()
        self._batches += 1
        last = trainer.is_last_batch or trainer.should_stop
        if step > mark and (last or step % self.every == 0):
            means = {name: float(total) / self._batches for name, total in self._sums.items()}
            self._sums, self._batches = {}, 0
            self.loss = means["loss"]
            self.step_seconds = (now - then) / (step - mark)
            throughput = self._amount * trainer.world_size / (now - then)
            self._begin(trainer)
            pace = {
                "time/step_ms": 1000 * self.step_seconds,
                f"time/{pl_module.unit}_per_second": throughput,
            }
            send(trainer, {**{f"train/{name}": mean for name, mean in means.items()}, **pace})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            send(trainer, measured(trainer, "val/"))

    def state_dict(self) -> dict[str, Any]:
        sums = {name: float(total) for name, total in self._sums.items()}
        return {"sums": sums, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        sums = state_dict["sums"]
        self._sums = {name: torch.tensor(total, dtype=torch.float64) for name, total in sums.items()}
        self._batches = state_dict["batches"]

    def summary(self, trainer: pl.Trainer, schedule: Schedule, metrics: dict[str, float]) -> str:
        """Where the run stands, on one line; what was not measured yet is left out."""
        shown = [] if self.loss is None else [f"loss {self.loss:.3f}"]
        shown += [*(f"{name} {value:.4g}" for name, value in metrics.items()), f"lr {schedule.lr:.2e}"]
        if self.step_seconds is not None:
            left = (schedule.total(trainer) - trainer.global_step) * self.step_seconds
            shown += [f"{1000 * self.step_seconds:.0f} ms/step", f"{duration(left)} left"]
        return "  ".join(shown)


def measured(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    """The last values of the task's metrics that begin with `prefix`."""
    return {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(prefix)}


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The last `val/...` values but the loss."""
    return {n: v for n, v in measured(trainer, "val/").items() if n != "val/loss"}


class ProgressLines(pl.Callback):
    """A line after a validation, about twenty in a run."""

    def __init__(self, report: Report, throughput: Throughput, schedule: Schedule) -> None:
        self.report, self.throughput, self.schedule = report, throughput, schedule
        self._next = 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step, total = trainer.global_step, self.schedule.total(trainer)
        if trainer.sanity_checking or (step < self._next and step < total):
            return
        self._next = step + total / LINES
        where = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {step:,}/{total:,}"
        text = self.throughput.summary(trainer, self.schedule, validation_metrics(trainer))
        self.report.detail(f"{where}  {text}")


class ProgressBar(pl.Callback):
    """One bar over all steps of the run."""

    def __init__(self, report: Report, throughput: Throughput, schedule: Schedule) -> None:
        self.report, self.throughput, self.schedule = report, throughput, schedule
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        self.bar = Progress(*columns, console=report.console, transient=True, refresh_per_second=4)
        self.task: TaskID | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.start()
        self.task = self.bar.add_task("", total=self.schedule.total(trainer), text="")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.task is not None and (trainer.global_step % 10 == 0 or batch_idx == 0):
            text = self.throughput.summary(trainer, self.schedule, validation_metrics(trainer))
            place = "" if self.report.place is None else f"{self.report.place}  "
            epoch = f"{place}epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.update(self.task, completed=trainer.global_step, description=epoch, text=text)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()
