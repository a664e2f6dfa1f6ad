"""The trace of the Hessian of a loss in the weights of each layer, by Hutchinson's estimator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class Trace(NamedTuple):
    """An estimate with its standard error."""

    mean: float
    error: float


def traces(
    losses: Sequence[Callable[[], Tensor]],
    weights: Mapping[str, Tensor],
    draws: int = 100,
    tolerance: float = 0.05,
    seed: int = 0,
    told: Callable[[int], None] = lambda _: None,
) -> dict[str, Trace]:
    """tr(H) of each weight, where H are the second derivatives of a mean of losses in this weight alone.

    `E v^T H v = tr(H)` for v of random signs (Hutchinson 1990; HAWQ-V2, arXiv 1911.03852, section 3.2). One v
    is drawn for all weights at once: what it adds between two of them has the mean zero.

    Args:
        losses: one for each batch of the same size, as functions of the weights as they are.
        weights: by name; they require gradients.
        draws: at most; it ends, from ten on, where every standard error is below `tolerance` of its mean.
        told: is called with the number of draws.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = list(weights.values())
    drawn: list[Tensor] = []
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        for number in range(1, draws + 1):
            signs = [random_signs(weight, generator) for weight in parameters]
            drawn.append(curvatures(losses, parameters, signs))
            told(number)
            means, errors = estimates(drawn)
            if number >= 10 and bool((errors <= tolerance * means.abs()).all()):
                break
    means, errors = estimates(drawn)
    pairs = zip(means.tolist(), errors.tolist(), strict=True)
    return {name: Trace(mean, error) for name, (mean, error) in zip(weights, pairs, strict=True)}


def random_signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    """-1 or 1 for each weight, drawn on the CPU: the same on every device."""
    return (torch.randint(2, weight.shape, generator=generator) * 2 - 1).to(weight)


def curvatures(
    losses: Sequence[Callable[[], Tensor]], weights: Sequence[Tensor], signs: Sequence[Tensor]
) -> Tensor:
    """v^T H v by weight, `[weights]`, in fp64."""
    sums = torch.zeros(len(weights), dtype=torch.float64)
    for loss in losses:
        gradients = torch.autograd.grad(loss(), weights, create_graph=True)
        products = torch.autograd.grad(gradients, weights, grad_outputs=signs)
        sums += torch.stack([(v * hv).double().sum().cpu() for v, hv in zip(signs, products, strict=True)])
    return sums / len(losses)


def estimates(drawn: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means and their standard errors; infinite for a single draw."""
    values = torch.stack(list(drawn))
    if len(values) < 2:
        return values[0], torch.full_like(values[0], torch.inf)
    return values.mean(0), values.std(0) / len(values) ** 0.5
