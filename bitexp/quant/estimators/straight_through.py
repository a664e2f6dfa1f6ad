"""The identity."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.parts import ESTIMATORS, Estimator


@ESTIMATORS.register("straight_through")
class StraightThrough(Estimator):
    """The identity (arXiv 1308.3432)."""

    identity = True

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        return grad
