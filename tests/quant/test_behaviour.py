"""What papers report of methods, at the size of digits: which of two is better, in the loss of training."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bitexp.quant import SPARSIFIERS, WEIGHTS, quantize
from bitexp.quant.product import Quantized
from bitexp.quant.sparsifiers import TopK
from bitexp.quant.weights.lsq import LSQ

SEEDS = 3
LearnedBy = Callable[..., torch.optim.Optimizer]


class SquaredReLU(nn.Module):
    """relu(x)^2, whose outputs have heavy tails."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


def loss_of(
    config: str | Mapping[str, Any],
    lr: float,
    *,
    sizes: tuple[int, ...] = (64, 16, 16),
    activation: type[nn.Module] = nn.ReLU,
    optimizer: LearnedBy = torch.optim.Adam,
) -> float:
    """The mean over seeds of the cross entropy on all digits after 300 steps; the last layer is in floats."""
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    labels = torch.tensor(load_digits().target)
    losses = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        draw = torch.Generator().manual_seed(seed)
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())]
        model = nn.Sequential(*layers, nn.Linear(sizes[-1], 10))
        quantize(model, config, exclude=[str(len(layers))])
        learner = optimizer(model.parameters(), lr=lr)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(learner, 300)
        for _ in range(300):
            batch = torch.randint(len(images), (64,), generator=draw)
            learner.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            learner.step()
            rates.step()
        with torch.no_grad():
            losses.append(F.cross_entropy(model.eval()(images), labels).item())
    return statistics.fmean(losses)


@pytest.mark.slow
def test_fewer_bits_cost_more() -> None:
    """The order of ParetoQ (arXiv 2502.02631), here from scratch, each at its best rate of two."""
    one, two = loss_of("paretoq_1bit", 0.01), loss_of("paretoq_2bit", 0.03)
    assert one > 1.15 * two
    assert one > 1.4 * loss_of("paretoq_4bit", 0.03)


class Unscaled(LSQ):
    """LSQ whose step size has its gradient without the factor `1 / sqrt(weights * highest level)`."""

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        of_weight, of_step = super().gradients(grad, weight, quantized, *learned)
        return of_weight, of_step * (weight.numel() * self.levels.high) ** 0.5


def momentum(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """SGD as in LSQ's paper; Adam would undo any factor of a gradient."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.slow
def test_lsq_of_two_bits_does_not_converge_without_its_gradient_scale() -> None:
    """As in the paper's table 3 at its usual rate (arXiv 1902.08153)."""

    def loss(name: str) -> float:
        weights = {"name": name, "bits": 2, "granularity": "tensor"}
        return loss_of({"weights": weights}, 0.1, sizes=(64, 32, 32), optimizer=momentum)

    with WEIGHTS.temporarily("unscaled", Unscaled):
        assert loss("unscaled") > 5 * loss("lsq")


@pytest.mark.slow
def test_four_bit_activations_of_heavy_tails_want_a_rotation_or_eight_bits() -> None:
    """As BitNet v2 (arXiv 2504.18415) and a4.8 (2411.04965) say of the inputs of their down projection."""

    def loss(activations: str, **more: Any) -> float:
        config = {"weights": "ternary_mean", "norm": "rms", "activations": activations, **more}
        return loss_of(config, 0.003, sizes=(64, 64, 64, 64), activation=SquaredReLU)

    plain = loss("int4")
    assert plain > 3 * loss("int8")
    assert plain > 3 * loss("int4", transform="hadamard")
    assert plain > 3 * loss("int4", layers=[{"match": ["2", "4"], "activations": "int8"}])


class Masked(TopK):
    """Top-k whose gradient passes to what is kept alone."""

    def forward(self, x: Tensor, dim: int) -> Tensor:
        return x * (super().forward(x, dim).detach() != 0)


@pytest.mark.parametrize(("name", "vanishes"), [("top_k", False), ("masked", True)])
def test_the_gradient_vanishes_towards_the_input_where_the_mask_stops_it(name: str, vanishes: bool) -> None:
    """Figure 4 of Q-Sparse (arXiv 2407.10969): why its gradient passes to all inputs."""
    torch.manual_seed(0)
    with SPARSIFIERS.temporarily("masked", Masked):
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
        sparsifier = {"name": name, "keep": 0.5}
        quantize(
            model, {"weights": "ternary_mean", "activations": "int8", "norm": "rms", "sparsifier": sparsifier}
        )
        (model(torch.randn(32, 64)) * torch.randn(32, 64)).sum().backward()
    first, last = (layer.get_parameter("weight").grad.norm() for layer in (model[0], model[-1]))  # type: ignore[union-attr]
    assert (first < 0.1 * last) == vanishes
    assert (first > 0.5 * last) != vanishes
