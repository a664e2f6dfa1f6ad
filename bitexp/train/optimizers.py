"""Optimizers: decay groups, and bf16 latents that are updated through fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.config.schema import Adam, Sgd
from bitexp.quant.layers import QuantizedLayer

DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of layers that multiply decay; norms, biases, embeddings and scales do not.

    A parameter decays when it is the `weight` of two or more dimensions of a linear or convolution,
    quantized or not. A weight that an embedding shares (tied head) does not.
    """
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, (*DECAYED, QuantizedLayer)) and id(m.weight) not in embedded
    }
    decayed |= {  # nn.MultiheadAttention holds its projections as bare parameters
        id(p) for n, p in model.named_parameters() if n.rpartition(".")[2].endswith("_proj_weight")
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if id(p) in decayed],
            "weight_decay": weight_decay,
            "decays": True,
        },
        {
            "params": [p for p in parameters if id(p) not in decayed],
            "weight_decay": 0.0,
            "decays": False,
        },
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, settings: Adam | Sgd) -> torch.optim.Optimizer:
    """The optimizer for a model; for bf16 parameters one that steps in fp32 (`Bf16Latents`)."""
    groups = decay_groups(model, settings.weight_decay)

    def make(params: Iterable[Any]) -> torch.optim.Optimizer:
        if isinstance(settings, Sgd):
            return torch.optim.SGD(
                params, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov
            )
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        beta1, beta2 = settings.betas
        return kind(params, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=True)

    if any(p.dtype == torch.bfloat16 for p in model.parameters()):
        return Bf16Latents(groups, make, settings.stochastic_rounding)
    return make(groups)


class Bf16Latents(torch.optim.Optimizer):
    """Pure bf16 weights with fp32 optimizer state: the latents themselves have 8 bits of mantissa.

    Every step starts from the bf16 values, is computed in fp32, and is rounded back: to the nearest
    (small steps are lost: the trap of training with bf16 latents, arXiv 2010.06192) or stochastically
    (kept in expectation). `stochastic` draws from torch's global generator.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: Callable[[Iterable[Any]], torch.optim.Optimizer],
        stochastic: bool,
    ) -> None:
        self.stochastic = stochastic
        self.twins: dict[Tensor, Tensor] = {
            p: p.detach().float().requires_grad_() for g in groups for p in g["params"]
        }
        self.inner = make([{**g, "params": [self.twins[p] for p in g["params"]]} for g in groups])
        super().__init__(groups, dict(self.inner.defaults))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._hand_over()
        for latent, twin in self.twins.items():
            twin.data.copy_(latent)
            twin.grad = None if latent.grad is None else latent.grad.float()
        self.inner.step()
        for latent, twin in self.twins.items():
            if twin.grad is not None:
                rounds = self.stochastic and latent.dtype == torch.bfloat16
                latent.copy_(stochastic_bf16(twin) if rounds else twin)
            twin.grad = None
        return loss

    def _hand_over(self) -> None:
        """Gives learning rates and the like, which others set in our groups, to the inner optimizer."""
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({key: value for key, value in outer.items() if key != "params"})

    def state_dict(self) -> dict[str, Any]:
        self._hand_over()
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Drops an optimizer's moments and step counts: it goes on as if it were new."""
    (optimizer.inner if isinstance(optimizer, Bf16Latents) else optimizer).state.clear()


def stochastic_bf16(x: Tensor) -> Tensor:
    """Rounds fp32 to one of its two bf16 neighbours, with E[result] = x.

    Adds 16 random bits below the bf16 mantissa and cuts them off (arXiv 2010.06192). Infinities and
    NaN stay what they are.
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device)
    rounded = (bits + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)
