"""Several optimizers that step as one, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bitexp.train.closures import evaluated


class Several(torch.optim.Optimizer):
    """Its groups are those of the inner optimizers, one after the other: rates are set here."""

    def __init__(self, inner: Sequence[torch.optim.Optimizer]) -> None:
        self.inner = list(inner)
        groups = [group for optimizer in self.inner for group in optimizer.param_groups]
        super().__init__(groups, {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for optimizer in self.inner for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        for optimizer in self.inner:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"inner": [optimizer.state_dict() for optimizer in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.inner, state_dict["inner"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()
