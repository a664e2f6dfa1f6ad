"""One bit: the sign of an input, or of what it is above a learned threshold."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import BINARY
from bitexp.quant.parts import ACTIVATIONS, ESTIMATORS, ActivationQuantizer
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS, ActivationSpec, Part
from bitexp.quant.sums import token_means


@ACTIVATIONS.register("sign")
class Sign(ActivationQuantizer):
    """`sign(x + threshold)` with sign(0) = +1.

    Args:
        scale: `one`, or the `mean` |x| of a token or sample (XNOR-Net, arXiv 1603.05279, in BiBench's form).
        threshold: whether one is learned for each input feature (RSign of ReActNet, arXiv 2003.03488);
            it begins with zero.
        estimator: the gradient of the sign, a word: `clipped` at 1, `polynomial`, `swish`, `tanh` (IR-Net's),
            `straight_through`.
    """

    def __init__(
        self,
        features: int,
        *,
        scale: Literal["one", "mean"] = "one",
        threshold: bool = False,
        estimator: str = "clipped",
    ) -> None:
        if scale not in ("one", "mean"):
            raise ValueError(f"scale={scale} should be 'one' or 'mean'")
        options = {"scale": scale, "threshold": threshold, "estimator": estimator}
        super().__init__(ActivationSpec(Part("sign", options), BINARY))
        self.by_mean, self.estimator = scale == "mean", ESTIMATORS.get(estimator)()
        self.threshold = nn.Parameter(torch.zeros(features)) if threshold else None

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        above = x if self.threshold is None else x + self.per_feature(self.threshold.detach())
        codes = torch.where(above >= 0, 1, -1).to(torch.int8)
        if self.by_mean:
            mean = token_means(x.abs(), dims)
            return codes, mean.clamp(min=EPS)
        return codes, torch.ones([1] * x.dim(), dtype=x.dtype, device=x.device)

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        assert self.estimator is not None
        dequantized = quantized.codes * quantized.scale
        if not learned:
            return (self.estimator(grad, x, dequantized, quantized.scale),)
        of_x = self.estimator(grad, x + self.per_feature(learned[0]), dequantized, quantized.scale)
        return of_x, of_x.movedim(self.feature_dim, -1).reshape(-1, len(learned[0])).sum(0)
