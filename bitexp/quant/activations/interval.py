"""EWGS's activations: unsigned codes over a learned interval."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitexp.quant.activations.learned import Calibrated
from bitexp.quant.activations.unsigned import unsigned
from bitexp.quant.parts import ACTIVATIONS
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS, ActivationSpec, Part


@ACTIVATIONS.register("interval")
class IntervalActivations(Calibrated):
    """`round(high u) / high` with `u = clamp((x - lower) / (upper - lower), 0, 1)`, both ends learned.

    The gradient through the rounding is that of the weights of the same name, with their `delta`; beyond the
    ends inputs have none (EWGS, arXiv 2104.00903, eq. 1, 2 and 8). Both ends begin with the first batch: its
    least value, at least three standard deviations below its mean, and, as in the authors' code, three
    standard deviations of what a ReLU's output had before it was cut, `3 std / sqrt(1 - 2 / pi)`.

    Args:
        bits: 1 to 7.
        delta: 0 is straight through.
    """

    def __init__(self, *, bits: int = 4, delta: float = 0.001) -> None:
        if delta < 0:
            raise ValueError(f"delta={delta} must not be negative")
        levels = unsigned("interval", bits).levels
        super().__init__(ActivationSpec(Part("interval", {"bits": bits, "delta": delta}), levels))
        self.delta = delta
        self.lower, self.upper = nn.Parameter(torch.tensor(-3.0)), nn.Parameter(torch.tensor(3.0))

    def begin(self, x: Tensor) -> None:
        deviation = x.std(correction=0)
        self.lower.copy_(torch.maximum(x.min(), x.mean() - 3 * deviation))
        self.upper.copy_(torch.maximum(3 * deviation / (1 - 2 / torch.pi) ** 0.5, self.lower + EPS))

    def unit(self, x: Tensor) -> Tensor:
        """Where inputs lie in the interval: 0 and 1 are its ends."""
        lower, upper = self.lower.detach(), self.upper.detach()
        return (x - lower) / (upper - lower).clamp(min=EPS)

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        high = self.spec.levels.high
        codes = (self.unit(x).clamp(0, 1) * high).round_().to(torch.int8)
        return codes, torch.full([1] * x.dim(), 1 / high, dtype=x.dtype, device=x.device)

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        lower, upper = learned
        unit = self.unit(x.detach())
        moved = unit.clamp(0, 1) - quantized.codes * quantized.scale
        of_unit = grad * (1 + self.delta * grad.sign() * moved)
        of_x = of_unit * ((unit >= 0) & (unit <= 1)) / (upper - lower).clamp(min=EPS)
        return of_x, (of_x * (unit - 1)).sum(), -(of_x * unit).sum()
