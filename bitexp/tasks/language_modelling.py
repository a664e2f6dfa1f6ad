"""Causal language modelling: cross entropy of the next token, perplexity, bits per byte of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bitexp.common.torchmetrics import MeanMetric
from bitexp.config.optimization import Optimizer
from bitexp.tasks.objectives import cross_entropy
from bitexp.tasks.task import TASKS, Task

LARGEST = 88.0
"""The loss from which on the perplexity no longer grows: its exponential is about the last in fp32."""


@TASKS.register("language_modelling")
class LanguageModelling(Task):
    """Trains a model `[B, T] -> [B, T, vocabulary]` to predict the token after each.

    `loss` is in nats per token and `perplexity` its exponential; `bits_per_byte` does not depend on the
    tokenizer: loss / ln 2 times the tokens per byte of the whole part. Every window is read by itself, so
    that its first tokens are predicted from little.
    """

    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = dict.fromkeys(
        ("val/loss", "val/perplexity", "val/bits_per_byte"), "min"
    )
    headline = "bits_per_byte"
    unit = "tokens"
    use = 'python -m bitexp generate {folder} --prompt "{prompt}"'

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, vocabulary: int, **options: Any) -> None:
        super().__init__(model, optimizer, **options)
        self.vocabulary = vocabulary
        # NaN stays NaN; "warn" would leave it out, and "disable" the weights (torchmetrics 1.9)
        self.val_loss, self.test_loss = MeanMetric(math.nan), MeanMetric(math.nan)

    def amount(self, batch: tuple[Tensor, Tensor]) -> int:
        return batch[1].numel()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.val_loss.update(cross_entropy(self.outputs(batch), batch[1]), batch[1].numel())

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_loss.update(cross_entropy(self.outputs(batch), batch[1]), batch[1].numel())

    def on_validation_epoch_start(self) -> None:
        self.val_loss.set_dtype(torch.float64)  # a bf16 model takes its metrics along to bf16

    def on_test_epoch_start(self) -> None:
        self.test_loss.set_dtype(torch.float64)

    def on_validation_epoch_end(self) -> None:
        self._tell("val", self.val_loss)

    def on_test_epoch_end(self) -> None:
        self._tell("test", self.test_loss)

    def _tell(self, part: str, mean: MeanMetric) -> None:
        loss = float(mean.compute())
        mean.reset()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        bits = loss / math.log(2) / data.bytes_per_token(part)
        values = {"loss": loss, "perplexity": math.exp(min(loss, LARGEST)), "bits_per_byte": bits}
        for name, value in values.items():
            self.log(f"{part}/{name}", value, sync_dist=True)  # the same in every process already
