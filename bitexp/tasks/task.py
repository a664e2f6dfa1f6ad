"""The registry of tasks, and what every task is: a model, its optimizer, and metrics under agreed names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from bitexp.common.lightning import pl
from bitexp.common.registry import Registry
from bitexp.config.optimization import Optimizer
from bitexp.quant.modes import with_child
from bitexp.tasks.distillation import NOTHING, Distiller
from bitexp.tasks.objectives import CROSS_ENTROPY, build_objectives
from bitexp.train.optimizers import build_optimizer

TASKS: Registry[type[Task]] = Registry("task")


class Task(pl.LightningModule):
    """A model with its optimizer and its objectives. Subclasses log `val/...` and `test/...`.

    Keyword arguments of a subclass come from the YAML of the task, or from the data where their names
    are among its facts (`classes`, say).
    """

    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"val/loss": "min"}
    """What a validation measures and may be monitored, and which end of it is the better one."""
    headline: ClassVar[str] = "loss"
    """The metric that tables compare by."""
    unit: ClassVar[str] = "samples"
    """What `amount` counts: `time/UNIT_per_second` is measured."""
    use: ClassVar[str] = ""
    """The command that uses a trained network, with `{folder}` for its run and `{prompt}` for that of the
    data; nothing where there is none."""

    label_smoothing: float = 0.0
    """Share of a target that the training spreads over all classes."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        objectives: Mapping[str, Mapping[str, Any] | None] = CROSS_ENTROPY,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_settings = optimizer
        self.objectives = build_objectives(objectives)
        self.distiller: Distiller | None = None
        """What the model learns from a teacher, where it has one."""
        self.terms: dict[str, Tensor] = {}
        """What the last training loss was made of, without weights, where there is more than one term."""
        self.measures_batch = False
        """Whether the training batch at hand is logged: set for each of them by who logs."""
        self.batch_measures: dict[str, Tensor] = {}
        """What was measured of the last such batch, by its name in `train/NAME`."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def outputs(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """What the model says about a batch, in fp32."""
        return self(batch[0]).float()

    @property
    def augments(self) -> bool:
        """Whether the model sees other training batches than those of the data."""
        return type(self).augmented is not Task.augmented

    def augmented(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A training batch as the model is to see it."""
        return batch

    def on_train_start(self) -> None:
        if self.distiller is not None:
            self.distiller.prepare(self.trainer.train_dataloader, self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        batch = self.augmented(batch)
        with NOTHING if self.distiller is None else self.distiller.watch:
            outputs = self.outputs(batch)
        if self.measures_batch:
            self.batch_measures = self.measured(outputs.detach(), batch)
        return self.loss(outputs, batch)

    def measured(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """What else than the loss to log of a training batch, by its name in `train/NAME`; scalars.

        Args:
            outputs: of the model, in fp32.
            batch: what it was trained on, augmented.
        """
        return {}

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The sum of the objectives, with a teacher that of its losses as well; a scalar."""
        distiller, own = self.distiller, 1.0 if self.distiller is None else self.distiller.own
        terms = {name: term(outputs, batch, self) for name, term in self.objectives.items() if own}
        weights = {name: own * self.objectives[name].weight for name in terms}
        if distiller is not None:
            terms |= distiller.terms(outputs, batch[0])
            weights |= distiller.weights
        if len(terms) > 1 or distiller is not None:
            self.terms = {name: term.detach() for name, term in terms.items()}
        return reduce(torch.add, (weights[name] * term for name, term in terms.items()))

    def with_model(self, model: nn.Module) -> Self:
        """This task around another network; metrics and settings are shared with this one."""
        twin = with_child(self, "model", model)
        vars(twin).pop("forward", None)  # DDP leaves the bound method there, of the task that it trained
        return twin

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, but for the loggers, which get the value from the callback `Throughput`."""
        super().log(*args, **{"logger": False, **kwargs})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.optimizer_settings)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm; Lightning refuses to for a fused optimizer in bf16, which scales nothing."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def amount(self, batch: Any) -> int:
        """How much a training batch holds, in the task's unit."""
        return len(batch[0])

    def test_predictions(self) -> dict[str, Tensor]:
        """`prediction` and `label` of every example of the last test, in order, where there are any."""
        return {}

    def test_tables(self) -> dict[str, list[list[int]]]:
        """Tables of the last test by name, to be kept as CSV files in the run's folder."""
        return {}
