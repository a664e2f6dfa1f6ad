"""The optimizer of a run: which parameters decay, and which optimizer steps which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.config.optimization import Adam, Cage, Dqt, Muon, Optimizer, Sgd
from bitexp.config.optimization import Lamb as LambSettings
from bitexp.quant.layers import QuantizedLayer, quantized_layers
from bitexp.train.bf16_latents import Bf16Latents
from bitexp.train.lamb import Lamb
from bitexp.train.levels import Leveled, Pulled
from bitexp.train.several import Several

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


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer for a model: steps are in fp32, also for bf16 parameters."""
    groups = decay_groups(model, settings.weight_decay)
    if isinstance(settings, Cage | Dqt):
        layers = {layer.weight: layer for layer in quantized_layers(model).values()}
        options = {"lr": settings.lr, "betas": tuple(settings.betas), "eps": settings.eps}
        if isinstance(settings, Dqt):
            return Leveled(groups, layers, **options)
        return Pulled(groups, layers, pull=settings.pull, silent=settings.silent, **options)
    return in_fp32(model, groups, settings)


def in_fp32(
    model: nn.Module, groups: list[dict[str, Any]], settings: Adam | Sgd | Muon | LambSettings
) -> torch.optim.Optimizer:
    """SGD, Adam, Muon or LAMB; for bf16 parameters inside of `Bf16Latents`."""
    if isinstance(settings, Muon):
        latents = {layer.weight for layer in quantized_layers(model).values()}
        groups = [{**group, "lr": settings.lr} for group in apart(groups, latents)]

    def make(params: Iterable[Any]) -> torch.optim.Optimizer:
        if isinstance(settings, Sgd):
            return torch.optim.SGD(
                params, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov
            )
        if isinstance(settings, Muon):
            return muon(list(params), settings)
        if isinstance(settings, LambSettings):
            return Lamb(list(params), settings.lr, tuple(settings.betas), settings.eps)
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        beta1, beta2 = settings.betas
        return kind(params, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=True)

    if any(p.dtype == torch.bfloat16 for p in model.parameters()):
        return Bf16Latents(groups, make, settings.stochastic_rounding, settings.kahan)
    return make(groups)


def apart(groups: list[dict[str, Any]], latents: set[Tensor]) -> list[dict[str, Any]]:
    """Decay groups with the latent weights that are matrices in a group of their own, the first one."""
    matrices = [p for group in groups for p in group["params"] if p in latents and p.dim() == 2]
    chosen, found = {id(p) for p in matrices}, []
    for group in groups:
        rest = [p for p in group["params"] if id(p) not in chosen]
        mine = [p for p in group["params"] if id(p) in chosen]
        found += [{**group, "params": mine, "matrices": True}] if mine else []
        found += [{**group, "params": rest, "matrices": False}] if rest else []
    return sorted(found, key=lambda group: not group["matrices"])


def muon(groups: list[dict[str, Any]], settings: Muon) -> torch.optim.Optimizer:
    """torch's Muon for the groups of matrices, with updates as large as AdamW's, and AdamW for the others."""
    matrices = [group for group in groups if group["matrices"]]
    others = [group for group in groups if not group["matrices"]]
    beta1, beta2 = settings.betas
    options: dict[str, Any] = {"lr": settings.lr, "eps": settings.eps}
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(
            torch.optim.Muon(
                matrices,
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        made.append(torch.optim.AdamW(others, betas=(beta1, beta2), fused=True, **options))
    return Several(made)
