"""int4 codes by the mean magnitude of a token, as in BitNet a4.8 (arXiv 2411.04965, eq. 4)."""

from __future__ import annotations

from torch import Tensor

from bitexp.quant.activations.int import absmean_codes
from bitexp.quant.levels import Levels
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.spec import ActivationSpec, Part


@ACTIVATIONS.register("int4")
class Int4(ActivationQuantizer):
    """`clamp(rint(x / scale), -8, 7)`, scale `mean|x| / sqrt(7)`; what is clipped keeps its gradient."""

    def __init__(self) -> None:
        super().__init__(ActivationSpec(Part("int4"), Levels.signed(4)))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return absmean_codes(x, self.spec.levels, dims)
