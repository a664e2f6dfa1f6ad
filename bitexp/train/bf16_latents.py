"""bf16 latents that are updated through fp32: rounded to the nearest, at random, or with compensation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bitexp.train.closures import evaluated
from bitexp.train.several import Several


class Bf16Latents(torch.optim.Optimizer):
    """Pure bf16 weights with fp32 optimizer state: the latents themselves have 8 bits of mantissa.

    Every step starts from the bf16 values, is computed in fp32, and is rounded back: to the nearest
    (small steps are lost: the trap of training with bf16 latents, arXiv 2010.06192) or stochastically
    (kept in expectation). `stochastic` draws from torch's global generator. With `kahan` what rounding took
    away is kept in bf16 as well, and given back before the next step: the compensated sum of that paper.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: Callable[[Iterable[Any]], torch.optim.Optimizer],
        stochastic: bool,
        kahan: bool = False,
    ) -> None:
        self.stochastic = stochastic
        self.lost: dict[Tensor, Tensor] = {
            p: torch.zeros_like(p) for g in groups for p in g["params"] if kahan and p.dtype == torch.bfloat16
        }
        """Of each latent what its last rounding took away."""
        self.twins: dict[Tensor, Tensor] = {
            p: p.detach().float().requires_grad_() for g in groups for p in g["params"]
        }
        self.inner = make([{**g, "params": [self.twins[p] for p in g["params"]]} for g in groups])
        super().__init__(groups, dict(self.inner.defaults))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        self._hand_over()
        for latent, twin in self.twins.items():
            twin.data.copy_(latent)
            if latent in self.lost:
                twin.data.add_(self.lost[latent])
            twin.grad = None if latent.grad is None else latent.grad.float()
        self.inner.step()
        for latent, twin in self.twins.items():
            if twin.grad is not None:
                rounds = self.stochastic and latent.dtype == torch.bfloat16
                latent.copy_(stochastic_bf16(twin) if rounds else twin)
                if latent in self.lost:
                    self.lost[latent].copy_(twin - latent)
            twin.grad = None
        return loss

    def _hand_over(self) -> None:
        """Gives learning rates and the like, which others set in our groups, to the inner optimizer."""
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({key: value for key, value in outer.items() if key != "params"})

    def state_dict(self) -> dict[str, Any]:
        self._hand_over()
        state = self.inner.state_dict()
        return {**state, "lost": list(self.lost.values())} if self.lost else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        for lost, stored in zip(self.lost.values(), state.pop("lost", ()), strict=True):
            lost.copy_(stored)
        self.inner.load_state_dict(state)
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Drops an optimizer's moments and step counts: it goes on as if it were new."""
    if isinstance(optimizer, Bf16Latents):
        forget(optimizer.inner)
    elif isinstance(optimizer, Several):
        for inner in optimizer.inner:
            forget(inner)
    else:
        optimizer.state.clear()


def stochastic_bf16(x: Tensor) -> Tensor:
    """Rounds fp32 to one of its two bf16 neighbours, with E[result] = x.

    Adds 16 random bits below the bf16 mantissa and cuts them off (arXiv 2010.06192). Infinities and
    NaN stay what they are.
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device)
    rounded = (bits + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)
