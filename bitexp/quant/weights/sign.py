"""Signs with a factor of their own: the weights of binarized networks since XNOR-Net."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bitexp.quant.levels import BINARY
from bitexp.quant.parts import WEIGHTS, WeightQuantizer
from bitexp.quant.product import Quantized
from bitexp.quant.rank_one import rank_one
from bitexp.quant.spec import EPS
from bitexp.quant.sums import ordered_means, row_means, row_sums


@WEIGHTS.register("sign")
class Sign(WeightQuantizer):
    """sign(W), with sign(0) = +1, times a factor; an estimator gives the gradient of the sign.

    Where the factor is a `mean` the gradient is taken as if it were not there, as in the code of ReActNet and
    BiBench. One that is `learned`, or a power of two, stands outside the sign and multiplies the gradient.

    Args:
        scale: `mean` |W| (XNOR-Net, arXiv 1603.05279), `one` (arXiv 1602.02830), `learned`, which begins with
            the mean (XNOR-Net++, arXiv 1909.13863), or `power_of_two`, the nearest to the mean (IR-Net).
        standardize: whether each row is brought to mean 0 and standard deviation 1 before (IR-Net, arXiv
            1909.10788, eq. 9; ReCU); the gradient goes through that as well.
        init: where a learned factor begins: `mean` |W|, or `svid`, the rows' part of the best approximation
            of |W| by factors for rows and columns (OneBit, arXiv 2402.11295, eq. 5).
    """

    levels = BINARY
    later = frozenset({"init"})

    def __init__(
        self,
        weight: Tensor,
        *,
        scale: Literal["mean", "one", "learned", "power_of_two"] = "mean",
        standardize: bool = False,
        granularity: Literal["tensor", "channel"] = "channel",
        init: Literal["mean", "svid"] = "mean",
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if init not in ("mean", "svid"):
            raise ValueError(f"init={init} should be 'mean' or 'svid'")
        if init == "svid" and (scale, granularity) != ("learned", "channel"):
            raise ValueError("init=svid gives each row a learned factor: scale=learned, granularity=channel")
        if scale not in ("mean", "one", "learned", "power_of_two"):
            raise ValueError(f"scale={scale} should be 'mean', 'one', 'learned' or 'power_of_two'")
        self.kind, self.standardize = scale, standardize
        self.ruled = standardize
        self.factor: nn.Parameter | None = None
        if scale == "learned":
            rows, shape = self.rows(weight)
            begin = ordered_means(rows.abs()) if init == "mean" else rank_one(weight)[0]
            self.factor = nn.Parameter(begin.clamp(min=EPS).reshape(shape))

    def values(self, rows: Tensor) -> Tensor:
        """What the signs are taken of."""
        if not self.standardize:
            return rows
        return (rows - row_means(rows)) / deviation(rows)

    def scale(self, rows: Tensor) -> Tensor:
        if self.factor is not None:
            return self.factor.detach().reshape(-1, 1)
        if self.kind == "one":
            return rows.new_ones(len(rows), 1)
        mean = row_means(self.values(rows).abs())
        return mean.clamp(min=EPS).log2().round().exp2() if self.kind == "power_of_two" else mean

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        return torch.where(self.values(rows) >= 0, 1.0, -1.0)

    @property
    def has_rule(self) -> bool:
        return self.estimator is not None or self.standardize or self.kind in ("learned", "power_of_two")

    @property
    def takes_estimator(self) -> bool:
        return True

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        whole = self.granularity == "tensor"
        rows, g, codes = (
            t.reshape(1, -1) if whole else t.flatten(1) for t in (weight, grad, quantized.codes)
        )
        scale, values = quantized.scale.reshape(-1, 1), self.values(rows)
        of_factor = [(g * codes).sum(-1).reshape(quantized.scale.shape)] if learned else []
        if self.kind in ("learned", "power_of_two"):
            g = g * scale
        if self.estimator is not None:
            g = self.estimator(g, values, codes * scale, scale)
        if self.standardize:
            along = values * (g * values).sum(-1, keepdim=True) / max(1, rows.shape[-1] - 1)
            g = (g - g.mean(-1, keepdim=True) - along) / deviation(rows)
        return g.reshape(weight.shape), *of_factor


def deviation(rows: Tensor) -> Tensor:
    """The standard deviation of each row, with Bessel's correction, at least 1e-5; of one weight it is 1."""
    if rows.shape[-1] == 1:
        return torch.ones_like(rows)
    squares = row_sums((rows - row_means(rows)).square()) / (rows.shape[-1] - 1)
    return squares.sqrt().clamp(min=EPS)
