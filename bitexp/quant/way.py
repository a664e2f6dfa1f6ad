"""How a layer goes at one of its stages: its parts, its spec, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from bitexp.quant.options import LayerOptions, LayerParts
from bitexp.quant.parts import ActivationQuantizer, WeightQuantizer
from bitexp.quant.spec import ConvArgs, LayerSpec


class Way(NamedTuple):
    """How a layer goes at one of its stages: asking its parts at every step would take as long as a norm.

    `inner` is the spec for input that is normed already. `carries`: the gradient of the latent weights takes
    a carrier. `rotates`: they are mapped before they are quantized. `prepares`: the layer takes the norm
    itself. `ends`: anything but the bias comes after the product. `coder` makes the activation codes that no
    backend makes.
    """

    spec: LayerSpec
    inner: LayerSpec
    parts: LayerParts
    weights: WeightQuantizer
    coder: ActivationQuantizer | None
    carries: bool
    rotates: bool
    prepares: bool
    ends: bool

    @staticmethod
    def of(spec: LayerSpec, parts: LayerParts) -> Way:
        """For these parts."""
        weights, act, transform = parts.weights, parts.activations, parts.transform
        rotated = transform is not None and transform.on_weights
        coder = act if act is not None and (act.spec.absmax is None or act.has_rule) else None
        return Way(
            spec,
            replace(spec, norm="none"),
            parts,
            weights,
            coder,
            carries=weights.has_rule or rotated,
            rotates=rotated,
            prepares=not (coder is None and transform is None and parts.sparsifier is None),
            ends=spec.output_norm != "none"
            or (act is not None and act.has_shift)
            or (transform is not None and transform.has_addend),
        )


def earlier_parts(
    parts: LayerParts, final: LayerOptions, options: LayerOptions, weight: Tensor, conv: ConvArgs | None
) -> LayerParts:
    """Parts for an earlier stage: those of the end where the options are the same, else their own."""
    made = options.parts(weight, conv)
    made.weights, made.gradients = parts.weights, parts.gradients
    for key in ("activations", "transform", "sparsifier"):
        if getattr(options, key) == getattr(final, key):
            setattr(made, key, getattr(parts, key))
    return made


def spec_of(options: LayerOptions, parts: LayerParts, weight: Tensor, conv: ConvArgs | None) -> LayerSpec:
    """What a layer with these parts is without its tensors."""
    return LayerSpec(
        shape=tuple(weight.shape),
        conv=conv,
        norm=options.norm,
        transform=options.transform,
        sparsifier=options.sparsifier,
        activations=None if parts.activations is None else parts.activations.spec,
        weights=options.weights,
        levels=parts.weights.levels,
        shift=parts.weights.has_shift,
        bias=options.bias,
        output_norm=options.output_norm,
    )
