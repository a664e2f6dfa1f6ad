"""Derivatives of smooth functions in place of a step's."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.parts import ESTIMATORS, Estimator


@ESTIMATORS.register("polynomial")
class Polynomial(Estimator):
    """`max(0, 2 - 2|value|)`, the slope of a sign made of two parabolas (Bi-Real Net, arXiv 1808.00278)."""

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        return grad * (2 - 2 * value.abs()).clamp(min=0)


@ESTIMATORS.register("swish")
class Swish(Estimator):
    """The slope of SignSwish, `b (2 - b v tanh(b v / 2)) / (1 + cosh(b v))` (arXiv 1812.11800).

    Args:
        beta: b, how steep it is.
    """

    def __init__(self, *, beta: float = 5.0) -> None:
        if not beta > 0:
            raise ValueError(f"beta={beta} must be above 0")
        self.beta = beta

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        v = self.beta * value
        return grad * (self.beta * (2 - v * (v / 2).tanh()) / (1 + v.clamp(-60, 60).cosh()))


@ESTIMATORS.register("tanh")
class Tanh(Estimator):
    """The slope of a hyperbolic tangent, which may become a step in the course of the training.

    `k t (1 - tanh(t v)^2)`, t from 0.001 to 10 and k = max(1 / t, 1) (IR-Net, arXiv 1909.10788);
    or, with a `slope` s that stays, `1 - tanh(s v)^2 + floor` (OneBit, arXiv 2402.11295).

    Args:
        slope: None for IR-Net's, which rises with the share of the training.
        floor: what is left of the gradient far from zero.
    """

    def __init__(self, *, slope: float | None = None, floor: float = 0.0) -> None:
        if slope is not None and not slope > 0:
            raise ValueError(f"slope={slope} must be above 0, or null for one that rises")
        if floor < 0:
            raise ValueError(f"floor={floor} must not be negative")
        self.slope, self.floor = slope, floor
        self.progressive = slope is None

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        if self.slope is not None:
            return grad * (1 + self.floor - (self.slope * value).tanh().square())
        t = 10 ** (4 * self.progress - 3)
        factor = torch.clamp(t, min=1.0)  # k t
        return grad * (factor * (1 - (t * value).tanh().square()) + self.floor)
