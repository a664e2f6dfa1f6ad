"""int8 codes by the largest value of a token, as in the BitNet line (arXiv 2310.11453, eq. 4 and 5)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bitexp.quant.absmax import absmax_codes
from bitexp.quant.levels import Levels
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.spec import ActivationSpec, Part


@ACTIVATIONS.register("int8")
class Int8(ActivationQuantizer):
    """`rint(x * qmax / max|x|)`.

    Args:
        qmax: 127, or 128 (clipped at 127) as PyPI `bitlinear` has it since 2.0.
    """

    def __init__(self, *, qmax: Literal[127, 128] = 127) -> None:
        if qmax not in (127, 128):
            raise ValueError(f"qmax={qmax} should be 127 or 128")
        low = -128 if qmax == 128 else -127
        super().__init__(ActivationSpec(Part("int8", {"qmax": qmax}), Levels(low, 127), absmax=qmax))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        assert self.spec.absmax is not None
        return absmax_codes(x, self.spec.absmax, dims)
