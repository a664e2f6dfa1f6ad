"""Multi-layer perceptron on flattened images: linear layers, an activation after each, no norm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.common import checks
from bitexp.models.registry import MODELS
from bitexp.models.tape import Tape, Value
from bitexp.models.taps import Tap, Taps

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


@MODELS.register("mlp")
class MLP(nn.Module):
    """Images `[B, C, H, W]` -> logits `[B, classes]` through `hidden` layers of the given widths.

    Raises `ValueError`, before anything is allocated, for sizes below 1.
    """

    taps: ClassVar[Taps] = {"hidden": Tap("layers.*")}

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        classes: int,
        hidden: list[int],
        activation: Literal["relu", "gelu", "silu"],
        dropout: float,
    ) -> None:
        checks.check_image(shape, classes)
        checks.check_list("hidden", hidden)
        checks.check_choice("activation", activation, tuple(ACTIVATIONS))
        checks.check_dropout(dropout)
        super().__init__()
        self.activation, self.activation_name = ACTIVATIONS[activation], activation
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise([prod(shape), *hidden]))
        self.features, self.drop = prod(shape), nn.Dropout(dropout)
        self.head = nn.Linear(hidden[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = self.drop(self.activation(layer(x)))
        return self.head(x)

    def record(self, tape: Tape) -> Value:
        """Logits `[1, classes]` of one image, in evaluation."""
        x = tape.inputs(self.features)
        for layer in self.layers:
            x = tape.activate(self.activation_name, tape.linear(layer, x))
        return tape.linear(self.head, x)
