"""int8 codes by the largest value of a token, as in the BitNet line (arXiv 2310.11453, eq. 4 and 5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.spec import EPS, ActivationSpec, Part


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


def absmax_codes(
    x: Tensor, qmax: int, dims: tuple[int, ...], overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """Integer codes of x by absmax over `dims`: `rint(x * (qmax / absmax))`, and their scale.

    `qmax / absmax` is what torch computes for it, `reciprocal(absmax) * qmax`; every backend uses
    this one formula, since any other flips a code in a million. `overwrite` lets it use x's memory.

    Returns:
        int8 codes, and the scale `absmax / qmax`, of size 1 along `dims`.
    """
    # two reductions without a copy of x; torch's infinity norm takes ten times as long on the CPU
    largest, smallest = x.amax(dims, keepdim=True), x.amin(dims, keepdim=True)
    absmax = torch.maximum(largest, -smallest).clamp(min=EPS)
    factor = absmax.reciprocal() * qmax
    codes = (x.mul_(factor) if overwrite else x * factor).round_()
    if qmax > 127:  # below that |codes| <= qmax holds by itself: absmax bounds every |x|
        codes = codes.clamp_max_(127)
    # by a tensor: torch divides by a number as it is only on the CPU, on GPUs it takes its reciprocal times
    return codes.to(torch.int8), absmax / torch.full_like(absmax, qmax)
