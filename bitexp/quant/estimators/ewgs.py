"""The gradient by how far rounding moved a value."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.parts import ESTIMATORS, Estimator


@ESTIMATORS.register("ewgs")
class Ewgs(Estimator):
    """`grad (1 + delta sign(grad) (v - Q(v)) / scale)`: element-wise gradient scaling (arXiv 2104.00903).

    Distances are in units of the scale, where the paper has them in units of the whole range.

    Args:
        delta: the paper's fixed one; its other way, by the trace of the Hessian, is not here.
    """

    def __init__(self, *, delta: float = 0.001) -> None:
        if delta < 0:
            raise ValueError(f"delta={delta} must not be negative")
        self.delta = delta

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        return grad + self.delta * grad.abs() * (value - quantized) / scale
