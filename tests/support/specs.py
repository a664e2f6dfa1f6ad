"""Specs of layers as kernels get them."""

from __future__ import annotations

from bitexp.quant.levels import TERNARY, Levels
from bitexp.quant.spec import ActivationSpec, ConvArgs, LayerSpec, Part

INT4 = ActivationSpec(Part("int4"), Levels.signed(4))
"""Activations whose codes only their quantizer makes."""


def int8(qmax: int) -> ActivationSpec:
    """Activations by absmax: the largest value of a token gets the code `qmax`, clipped at 127."""
    low = -min(qmax, 128)
    return ActivationSpec(Part("int8", {"qmax": qmax}), Levels(low, min(qmax, 127)), absmax=qmax)


def spec_for(
    qmax: int = 127,
    scaled_bias: bool = False,
    conv: ConvArgs | None = None,
    shape: tuple[int, ...] = (),
    levels: Levels = TERNARY,
) -> LayerSpec:
    """A layer's spec; with a `qmax` of 0 the activations stay floats."""
    return LayerSpec(
        shape=shape,
        conv=conv,
        activations=int8(qmax) if qmax else None,
        levels=levels,
        bias="scaled" if scaled_bias else "plain",
    )
