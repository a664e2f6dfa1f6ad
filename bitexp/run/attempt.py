"""One attempt at a run as a value: what was asked for, what was built, and the facts that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.config.schema import Settings
from bitexp.data.base import Data
from bitexp.deploy.description import Description
from bitexp.run.build import describe
from bitexp.run.checks import device_type
from bitexp.run.parts import Parts
from bitexp.run.summary import (
    data_line,
    engines_line,
    kernel_line,
    model_line,
    quantizer_line,
    teacher_line,
    train_line,
)
from bitexp.track.folder import RunFolder
from bitexp.train.rates import lr_decay_sum


@dataclass(frozen=True)
class Attempt:
    """What every stage of the road takes. Its data can be read; what follows from it is computed once."""

    settings: Settings
    overrides: tuple[str, ...]
    """What was typed."""
    parts: Parts
    folder: RunFolder
    report: Report

    @cached_property
    def world_size(self) -> int:
        """Processes that train together."""
        return world_size(self.settings)

    @cached_property
    def batches(self) -> int:
        """Training batches of each process in an epoch."""
        return batches(self.settings, self.parts.data)

    @cached_property
    def steps(self) -> int:
        """Steps of the optimizer in the whole run."""
        steps, share = budget(self.settings, self.parts.data), self.settings.start.share
        return steps if share is None else steps - steps_of_source(steps, share)

    @cached_property
    def max_steps(self) -> int | None:
        """The step that ends the run, where that is not the end of its epochs."""
        return self.settings.trainer.max_steps if self.settings.start.share is None else self.steps

    @cached_property
    def lr_decay_sum(self) -> float:
        """How much weight decay can shrink the weights in the whole run (`train.rates`)."""
        return lr_decay_sum(self.settings.scheduler, self.settings.optimizer, self.steps)

    @cached_property
    def description(self) -> Description:
        """How to build the model again."""
        return describe(self.settings, self.parts)

    @cached_property
    def rows(self) -> Mapping[str, str]:
        """The run in words, by subject: the header of the run and its model card show them."""
        settings, parts = self.settings, self.parts
        return {
            "model": model_line(settings, parts),
            **({} if parts.start is None else {"start": parts.start.line()}),
            "quantizer": quantizer_line(settings, parts),
            "data": data_line(settings, parts, self.batches),
            "kernel": kernel_line(parts),
            "runs in": engines_line(parts, self.description.preprocessing.get("tokenizer")),
            "train": train_line(settings, parts, self.steps, self.lr_decay_sum),
            **({"teacher": teacher_line(settings.distill, parts)} if settings.distill else {}),
        }


def world_size(settings: Settings) -> int:
    """Processes that train together."""
    devices = settings.trainer.devices
    if isinstance(devices, int):
        return devices
    return torch.cuda.device_count() if device_type(settings) == "cuda" else 1


def batches(settings: Settings, data: Data) -> int:
    """Training batches of each process in an epoch."""
    limit = settings.trainer.train_batches
    count = data.sizes["train"] // data.batch_size // world_size(settings)
    return max(1, min(count, limit or count))


def budget(settings: Settings, data: Data) -> int:
    """Steps of the optimizer that `trainer` gives, for a run and what it starts from together."""
    options = settings.trainer
    steps = options.epochs * math.ceil(batches(settings, data) / options.accumulate)
    return steps if options.max_steps is None else min(steps, options.max_steps)


def steps_of_source(steps: int, share: float) -> int:
    """Those of a budget that the run gets which another starts from; both get some.

    Raises:
        UserError: there are too few.
    """
    if steps < 2:
        raise UserError(f"start.share={share} divides the steps of trainer, and there is {steps}")
    return min(max(1, round(share * steps)), steps - 1)
