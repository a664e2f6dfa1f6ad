"""Codes from zero on, for inputs that are not negative: what is negative counts as zero."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.levels import Levels
from bitexp.quant.parts import ACTIVATIONS, ActivationQuantizer
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS, ActivationSpec, Part


def unsigned(name: str, bits: int) -> ActivationSpec:
    """The spec of codes 0 .. 2^bits - 1. Raises `ValueError` for bits that int8 does not hold."""
    if not 1 <= bits <= 7:
        raise ValueError(f"bits={bits} must be from 1 to 7: codes are int8, whose highest is 127")
    return ActivationSpec(Part(name, {"bits": bits}), Levels(0, 2**bits - 1))


@ACTIVATIONS.register("unsigned")
class Unsigned(ActivationQuantizer):
    """`rint(max(x, 0) / scale)`, the largest of a token on the highest code; no gradient below zero.

    For what comes from a ReLU, with `norm: none`: a norm would make it signed.

    Args:
        bits: 1 to 7.
    """

    def __init__(self, *, bits: int = 4) -> None:
        super().__init__(unsigned("unsigned", bits))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        high = torch.full((), float(self.spec.levels.high), dtype=x.dtype, device=x.device)
        scale = (x.amax(dims, keepdim=True) / high).clamp(min=EPS)
        codes = (x * scale.reciprocal()).round_().clamp_(0, self.spec.levels.high)
        return codes.to(torch.int8), scale

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        return (grad * (x >= 0),)


@ACTIVATIONS.register("dorefa")
class DoReFa(ActivationQuantizer):
    """2^bits levels from 0 to 1, and no gradient outside (arXiv 1606.06160).

    Args:
        bits: 1 to 7.
    """

    def __init__(self, *, bits: int = 2) -> None:
        super().__init__(unsigned("dorefa", bits))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        high = self.spec.levels.high
        codes = (x.clamp(0, 1) * high).round_().to(torch.int8)
        return codes, torch.full([1] * x.dim(), 1 / high, dtype=x.dtype, device=x.device)

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        return (grad * ((x >= 0) & (x <= 1)),)
