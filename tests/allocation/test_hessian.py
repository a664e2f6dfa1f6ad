"""Hutchinson's estimate against the exact Hessian."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from bitexp.allocation.hessian import traces


def test_it_agrees_with_the_exact_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    batches = [(torch.randn(20, 6), torch.randint(3, (20,))) for _ in range(2)]
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2}

    def loss(name: str, weight: Tensor) -> Tensor:
        outputs = [(functional_call(model, {name: weight}, (x,)), y) for x, y in batches]
        return torch.stack([F.cross_entropy(logits, y) for logits, y in outputs]).mean()

    exact = {}
    for name, weight in weights.items():
        blocks = hessian(lambda value, name=name: loss(name, value), weight.detach())
        exact[name] = float(blocks.reshape(weight.numel(), weight.numel()).trace())
    losses = [lambda x=x, y=y: F.cross_entropy(model(x), y) for x, y in batches]
    found = traces(losses, weights, draws=500, tolerance=0.0)
    for name, estimate in found.items():
        assert estimate.error < 0.2 * exact[name]
        assert abs(estimate.mean - exact[name]) < 4 * estimate.error

    seen: list[int] = []
    early = traces(losses, weights, draws=400, tolerance=0.3, told=seen.append)
    assert 10 <= len(seen) < 400
    assert all(trace.error <= 0.3 * abs(trace.mean) for trace in early.values())
