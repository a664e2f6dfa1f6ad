"""Bit-wise training: a latent for each bit of a weight."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import Levels
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.per_row import spread
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS


@WEIGHTS.register("bit_planes")
class BitPlanes(WeightQuantizer):
    """`sign(w) sum_i 2^i [a_i > 0]` times a constant (arXiv 2202.09571).

    The layer's own latents are those of the sign, sign(0) = +1; `latents` are those of the magnitude's bits,
    the lowest first. Gradients go by the chain rule with steps taken as the identity. At the start the codes
    are those of `int`, a latent is the distance to where its bit changes, and the scale stays what it is.

    Args:
        bits: 2 to 8, with the sign.
        trained: how many of the highest bits of the magnitude are trained, None for all; the others stay
            what they are at the start.
    """

    ruled = True
    scales: Tensor
    fixed: Tensor

    def __init__(
        self,
        weight: Tensor,
        *,
        bits: int = 4,
        trained: int | None = None,
        granularity: Literal["tensor", "channel"] = "channel",
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        trained = bits - 1 if trained is None else trained
        if not 1 <= trained <= bits - 1:
            raise ValueError(f"trained={trained} must be from 1 to the {bits - 1} bits of the magnitude")
        self.levels, self.bits = Levels.symmetric(bits), bits
        rows, shape = self.rows(weight)
        scale = (rows.abs().amax(-1, keepdim=True) / self.levels.high).clamp(min=EPS)
        magnitude = rows.abs() / scale + 0.5  # so that its whole part is the nearest integer
        powers = 2.0 ** torch.arange(bits - 1, device=weight.device).reshape(-1, 1, 1)
        planes = (distance(magnitude, powers) * scale).reshape(bits - 1, *weight.shape)
        self.register_buffer("scales", scale.reshape(shape))
        self.register_buffer("fixed", planes[: bits - 1 - trained] > 0)
        self.latents = nn.Parameter(planes[bits - 1 - trained :].clone())

    def magnitude(self) -> Tensor:
        """The absolute values of the codes, `[out, ...]`."""
        planes = torch.cat((self.fixed, self.latents.detach() > 0))
        return (planes * self.powers(planes)).sum(0)

    def powers(self, planes: Tensor) -> Tensor:
        """What the highest bits of the magnitude count, as many as there are planes `[planes, out, ...]`."""
        count = int(self.bits or 2) - 1
        powers = 2 ** torch.arange(count - len(planes), count, device=planes.device)
        return powers.reshape(-1, *[1] * (planes.dim() - 1))

    def scale(self, rows: Tensor) -> Tensor:
        return self.scales.reshape(-1, 1)

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return torch.where(rows >= 0, 1, -1) * self.magnitude().reshape(rows.shape)

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        scaled = grad * spread(quantized.scale, weight)
        sign = torch.where(weight >= 0, 1.0, -1.0)
        return scaled * quantized.codes.abs(), scaled * sign * self.powers(learned[0])


def distance(magnitude: Tensor, power: Tensor) -> Tensor:
    """How far positive numbers are from a change of a bit of their whole part; negative where it is 0."""
    within, beyond = magnitude.remainder(2 * power), magnitude.remainder(power)
    nearest = torch.minimum(beyond, power - beyond)
    # on the border a bit that is set has to show
    return torch.where(within >= power, nearest.clamp(min=1e-3), -nearest)
