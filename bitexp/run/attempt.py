"""One attempt at a run as a value: what was asked for, what was built, and the facts that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from bitexp.common.console import Report
from bitexp.config.schema import Settings
from bitexp.deploy.description import Description
from bitexp.run.build import describe
from bitexp.run.checks import device_type
from bitexp.run.parts import Parts
from bitexp.run.summary import data_line, engines_line, kernel_line, model_line, quantizer_line, train_line
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
        devices = self.settings.trainer.devices
        if isinstance(devices, int):
            return devices
        return torch.cuda.device_count() if device_type(self.settings) == "cuda" else 1

    @cached_property
    def batches(self) -> int:
        """Training batches of each process in an epoch."""
        data, limit = self.parts.data, self.settings.trainer.train_batches
        count = data.sizes["train"] // data.batch_size // self.world_size
        return max(1, min(count, limit or count))

    @cached_property
    def steps(self) -> int:
        """Steps of the optimizer in the whole run."""
        options = self.settings.trainer
        steps = options.epochs * math.ceil(self.batches / options.accumulate)
        return min(steps, options.max_steps or steps)

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
            "quantizer": quantizer_line(settings, parts),
            "data": data_line(settings, parts, self.batches),
            "kernel": kernel_line(parts),
            "runs in": engines_line(parts, self.description.preprocessing.get("tokenizer")),
            "train": train_line(settings, self.steps, self.lr_decay_sum),
        }
