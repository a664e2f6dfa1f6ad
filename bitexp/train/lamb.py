"""LAMB: Adam whose steps are as large as the weights that they change (arXiv 1904.00962, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitexp.train.closures import evaluated


class Lamb(torch.optim.Optimizer):
    """Adam's step plus decay, times |weights| / |step| for each tensor of weights.

    As in the code of *ResNet strikes back* (timm) only the tensors that decay are scaled; norms, biases and
    embeddings take Adam's steps. Where either norm is 0 the factor is 1. State is in fp32.

    Args:
        groups: of parameters, `decays` says which are scaled.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, ...] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "decays": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        loss = evaluated(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, group)
        return loss

    def move(self, weight: Tensor, group: dict[str, Any]) -> None:
        """One step of one tensor."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(weight) for _ in range(2))
        beta1, beta2 = group["betas"]
        state["step"] += 1
        count = int(state["step"])
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = second.sqrt().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
        step = (first / (1 - beta1**count)).div_(root).add_(weight, alpha=group["weight_decay"])
        factor: Tensor | float = 1.0
        if group["decays"]:
            size, length = weight.norm(), step.norm()
            factor = torch.where((size > 0) & (length > 0), size / length, 1.0)
        weight.sub_(step * factor, alpha=group["lr"])
