"""Signed codes of 2 to 8 bits, by the largest or by the mean magnitude of a token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bitexp.quant.absmax import absmax_codes
from bitexp.quant.levels import Levels
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.spec import EPS, ActivationSpec, Part
from bitexp.quant.sums import token_means


@ACTIVATIONS.register("int")
class Int(ActivationQuantizer):
    """`clamp(rint(x / scale))`; what is clipped keeps its gradient.

    Args:
        bits: 2 to 8.
        scale: `absmax`, the largest |x| on the highest code, symmetric, as `int8` (arXiv 2310.11453); or
            `absmean`, `mean|x| / sqrt(highest)`, two's complement, as `int4` (BitNet a4.8, arXiv 2411.04965),
            whose formula for 4 bits is taken for all.
    """

    def __init__(self, *, bits: int = 4, scale: Literal["absmax", "absmean"] = "absmax") -> None:
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits} must be from 2 to 8")
        if scale not in ("absmax", "absmean"):
            raise ValueError(f"scale={scale} should be 'absmax' or 'absmean'")
        part = Part("int", {"bits": bits, "scale": scale})
        if scale == "absmax":
            levels = Levels.symmetric(bits)
            super().__init__(ActivationSpec(part, levels, absmax=levels.high))
        else:
            super().__init__(ActivationSpec(part, Levels.signed(bits)))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if self.spec.absmax is not None:
            return absmax_codes(x, self.spec.absmax, dims)
        return absmean_codes(x, self.spec.levels, dims)


def absmean_codes(x: Tensor, levels: Levels, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """int8 `clamp(rint(x / scale))`, and the scale `mean|x| / sqrt(highest level)`."""
    root = torch.full((), float(levels.high), dtype=x.dtype, device=x.device).sqrt()
    mean = token_means(x.abs(), dims)
    scale = (mean / root).clamp(min=EPS)
    codes = (x * scale.reciprocal()).round_().clamp_(levels.low, levels.high)
    return codes.to(torch.int8), scale
