"""LAMB, against numbers of timm 1.0.31 (`timm.optim.lamb.Lamb`, no clipping)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.config.optimization import Lamb as Settings
from bitexp.train.lamb import Lamb
from bitexp.train.optimizers import build_optimizer

WEIGHTS = [
    -1.262062668800354, -0.8267281651496887, -0.050401508808135986, 0.9061791300773621, 1.8275314569473267,
    2.267916202545166,
]  # fmt: skip
ROUNDING = {"stochastic_rounding": False, "kahan": False}
BIAS = [0.2076837122440338, 0.04231764003634453]


def test_three_steps_are_those_of_timm() -> None:
    weight = nn.Parameter(torch.linspace(-1, 2, 6).reshape(2, 3))
    bias = nn.Parameter(torch.tensor([0.5, -0.25]))
    groups = [
        {"params": [weight], "weight_decay": 0.02, "decays": True},
        {"params": [bias], "weight_decay": 0.0, "decays": False},
    ]
    optimizer = Lamb(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-6)
    for step in range(3):
        weight.grad = torch.sin(torch.arange(6.0).reshape(2, 3) + step)
        bias.grad = torch.tensor([0.1, -0.3]) * (step + 1)
        optimizer.step()
    assert weight.detach().flatten().tolist() == pytest.approx(WEIGHTS, abs=1e-6)
    assert bias.detach().tolist() == pytest.approx(BIAS, abs=1e-6)


def test_weights_of_zero_can_leave_it_and_what_has_no_gradient_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.zeros_(model[0].weight)
    before = model[1].weight.clone()
    settings = Settings(name="lamb", lr=0.1, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-6, **ROUNDING)
    optimizer = build_optimizer(model, settings)
    model[0].weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert bool((model[0].weight != 0).all())
    assert torch.equal(model[1].weight, before)


def test_it_continues_from_its_state() -> None:
    def steps(
        count: int, state: dict[str, object] | None = None, start: float = 1.0
    ) -> tuple[float, dict[str, object]]:
        weight = nn.Parameter(torch.tensor([[start]]))
        optimizer = Lamb([{"params": [weight], "weight_decay": 0.1, "decays": True}], lr=0.1)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(count):
            weight.grad = weight.detach() * 0.3
            optimizer.step()
        return float(weight.detach()), optimizer.state_dict()

    whole, _ = steps(4)
    half, state = steps(2)
    assert steps(2, state, half)[0] == whole
