"""Nothing for what is far from the levels: at a fixed distance from zero, from its level, or of the tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitexp.quant.parts import ESTIMATORS, Estimator


@ESTIMATORS.register("clipped")
class Clipped(Estimator):
    """The identity where `|value| <= at`, else nothing (arXiv 1602.02830, eq. 4).

    Args:
        at: in units of the latent weights.
    """

    def __init__(self, *, at: float = 1.0) -> None:
        if not at > 0:
            raise ValueError(f"at={at} must be above 0")
        self.at = at

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        return grad * (value.abs() <= self.at)


@ESTIMATORS.register("trust")
class Trust(Estimator):
    """The identity where a value is at most `within` scales from its level (QuEST, arXiv 2502.05003).

    Inside the range every value is within half the distance of two levels; so this is a clip whose place
    follows the scale.

    Args:
        within: in scales; 1 is half the distance of levels that lie two scales apart, as those of `quest`
            do, and 0.5 that of neighbouring integers.
    """

    def __init__(self, *, within: float = 1.0) -> None:
        if not within > 0:
            raise ValueError(f"within={within} must be above 0")
        self.within = within

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        return grad * ((quantized - value).abs() <= self.within * scale)


@ESTIMATORS.register("rectified")
class Rectified(Estimator):
    """Nothing for the tails beyond the quantile tau of a Laplace distribution (ReCU, arXiv 2103.12369).

    tau rises exponentially from 0.85 to 0.99 with the share of the training, as the authors' trainer has it.
    """

    progressive = True

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        tau = 0.85 + (0.99 - 0.85) * self.progress.expm1() / (math.e - 1)
        bound = -value.abs().mean() * torch.log(2 - 2 * tau)
        return grad * (value.abs() <= bound)
