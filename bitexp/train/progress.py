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
    """Sends what the task measured to the loggers, with the learning rate, the norm of the gradient, the pace
    and, on a GPU, the memory.

    Training every so many steps and at its end or an epoch's: loss and pace as means over the batches since
    the last time, all else of the batch at hand, and computed for no other. Validation after it. Both under
    the number of steps taken. Lightning's own logging writes a batch's metrics only after the hooks that save
    a checkpoint, so a resumed run would lack them, and numbers a validation by the step before.
    """

    def __init__(self, every: int, max_steps: int | None = None) -> None:
        """`max_steps` is the step that ends the run, whatever the epochs say."""
        self.every, self.max_steps = every, max_steps
        self.loss: float | None = None
        self.step_seconds: float | None = None
        self._mark = (0, 0.0)
        self._amount = 0
        self._sums: dict[str, float] = {}
        self._batches = 0
        self._unsummed: list[dict[str, Tensor]] = []  # of the last of these batches
        self._accumulate = 1
        self._gradient_norm: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._accumulate = trainer.accumulate_grad_batches
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        self._mark, self._amount = (trainer.global_step, time.monotonic()), 0

    def _is_shown(self, trainer: pl.Trainer, step: int) -> bool:
        """Whether this batch is logged, if it completes that step."""
        return (
            step % self.every == 0 or step == self.max_steps or trainer.is_last_batch or trainer.should_stop
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        pl_module.measures_batch = self._is_shown(trainer, trainer.global_step + 1)  # type: ignore[assignment]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if pl_module.measures_batch:  # before they are clipped
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._gradient_norm = torch.nn.utils.get_total_norm(gradients)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        mark, then = self._mark
        self._amount += pl_module.amount(batch)  # type: ignore[operator]
        terms: dict[str, Tensor] = pl_module.terms  # type: ignore[assignment]
        self._unsummed.append({"loss": outputs["loss"], **terms})
        if step > mark and self._is_shown(trainer, step):
            now = time.monotonic()
            self._sum()
            means = {name: total / self._batches for name, total in self._sums.items()}
            self._sums, self._batches = {}, 0
            self.loss = means["loss"]
            self.step_seconds = (now - then) / (step - mark)
            throughput = self._amount * trainer.world_size / (now - then)
            self._begin(trainer)
            pace = {
                "time/step_ms": 1000 * self.step_seconds,
                f"time/{pl_module.unit}_per_second": throughput,
            }
            values = {**means, **self._of_this_batch(trainer, pl_module)}
            memory = peak_memory(trainer.strategy.root_device)
            send(trainer, {**{f"train/{name}": value for name, value in values.items()}, **pace, **memory})

    def _of_this_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Learning rate and gradient norm of the step just taken, and what the task measured of its batch."""
        values = {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        if self._gradient_norm is not None:
            values["grad_norm"] = float(self._gradient_norm)
        of_the_task: dict[str, Tensor] = pl_module.batch_measures  # type: ignore[assignment]
        return values | {name: float(value) for name, value in of_the_task.items()}

    def _sum(self) -> None:
        """Adds the values that wait, in fp64: one look at the device for all of them."""
        batches, self._unsummed = self._unsummed, []
        for name in batches[0] if batches else ():
            values = torch.stack([values[name].detach() for values in batches])
            if name == "loss":
                values = values * self._accumulate  # Lightning has divided it
            total = self._sums.get(name, 0.0)
            for value in values.tolist():  # one after the other, as if no checkpoint had parted them
                total += value
            self._sums[name] = total
        self._batches += len(batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            send(trainer, measured(trainer, "val/"))

    def state_dict(self) -> dict[str, Any]:
        self._sum()
        return {"sums": dict(self._sums), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._batches = dict(state_dict["sums"]), state_dict["batches"]

    def summary(self, trainer: pl.Trainer, schedule: Schedule, metrics: dict[str, float]) -> str:
        """Where the run stands, on one line; what was not measured yet is left out."""
        shown = [] if self.loss is None else [f"loss {self.loss:.3f}"]
        shown += [*(f"{name} {value:.4g}" for name, value in metrics.items()), f"lr {schedule.lr:.2e}"]
        if self.step_seconds is not None:
            left = (schedule.total(trainer) - trainer.global_step) * self.step_seconds
            shown += [f"{1000 * self.step_seconds:.0f} ms/step", f"{duration(left)} left"]
        return "  ".join(shown)


def peak_memory(device: torch.device) -> dict[str, float]:
    """`memory/peak_bytes`, the most that tensors have taken on a GPU so far; nothing elsewhere."""
    if device.type != "cuda":
        return {}
    return {"memory/peak_bytes": float(torch.cuda.max_memory_allocated(device))}


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
        self.report.line(f"{where}  {text}")


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
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.update(self.task, completed=trainer.global_step, description=epoch, text=text)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()
