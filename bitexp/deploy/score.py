"""Loss and accuracy of a model on samples that its run held out, in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.data.base import Data

TOKENS, IMAGES = 4096, 256
"""What is computed at once."""


@dataclass(frozen=True)
class Score:
    """Nats per image or token, which may be no finite number, and the share that is predicted right."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Samples:
    """Inputs `[N, ...]` and targets `[N]` or `[N, T]`."""

    inputs: Tensor
    targets: Tensor

    @staticmethod
    def held_out(data: Data, count: int | None) -> Samples:
        """The first of the test part; None: all of it.

        Raises:
            UserError: there is none.
        """
        inputs, targets, left = [], [], count
        for some, labels in data.test_dataloader():
            inputs.append(some[:left])
            targets.append(labels[:left])
            if left is not None and (left := left - len(some)) <= 0:
                break
        if not inputs:
            raise UserError("the data have no test part")
        return Samples(torch.cat(inputs), torch.cat(targets))

    def __len__(self) -> int:
        return len(self.inputs)

    def drawn(self, count: int, generator: torch.Generator) -> Samples:
        """So many of them, at random; all where there are fewer."""
        chosen = torch.randperm(len(self), generator=generator)[:count]
        return Samples(self.inputs[chosen], self.targets[chosen])

    def score(self, outputs: Callable[[Tensor], Tensor]) -> Score:
        """Of what a model says about them."""
        loss, right = 0.0, 0
        at_once = IMAGES if self.targets.dim() == 1 else max(1, TOKENS // self.targets.shape[1])
        for inputs, targets in zip(self.inputs.split(at_once), self.targets.split(at_once), strict=True):
            with torch.no_grad():
                logits = outputs(inputs).float().flatten(0, -2)
            loss += float(F.cross_entropy(logits, targets.flatten(), reduction="sum"))
            right += int((logits.argmax(-1) == targets.flatten()).sum())
        return Score(loss / self.targets.numel(), right / self.targets.numel())
