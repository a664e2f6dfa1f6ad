"""int4 codes by the mean magnitude of a token, as in BitNet a4.8 (arXiv 2411.04965, eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.spec import EPS, ActivationSpec, Part
from bitexp.quant.sums import row_means


@ACTIVATIONS.register("int4")
class Int4(ActivationQuantizer):
    """`clamp(rint(x / scale), -8, 7)`, scale `mean|x| / sqrt(7)`; what is clipped keeps its gradient."""

    def __init__(self) -> None:
        super().__init__(ActivationSpec(Part("int4"), Levels.signed(4)))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        root = torch.full((), 7.0, dtype=x.dtype, device=x.device).sqrt()
        mean = row_means(x.abs().flatten(-len(dims))).unflatten(-1, (1,) * len(dims))
        scale = (mean / root).clamp(min=EPS)
        codes = (x * scale.reciprocal()).round_().clamp_(self.spec.levels.low, self.spec.levels.high)
        return codes.to(torch.int8), scale
