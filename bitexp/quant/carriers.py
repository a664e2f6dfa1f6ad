"""The carriers of gradients: where rules of the parts apply, outside of the quantized product.

The product's node returns the exact gradient at the dequantized weights and activations. A carrier is an
alias of the latent weights (or of the input) whose backward maps that gradient to theirs, and to the
parameters that a part learns. So a new rule changes neither the node nor any kernel; the identity needs no
carrier at all. That of the output maps the gradient before it comes to the node.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitexp.quant.parts import ActivationQuantizer, GradientQuantizer, WeightQuantizer
from bitexp.quant.product import Quantized


class Carrier(torch.autograd.Function):
    """An alias of `value`; its backward is a part's rule. See the module."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor,
        codes: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        mix: Tensor | None,
        part: WeightQuantizer | ActivationQuantizer,
        *learned: Tensor,
    ) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, codes, scale, shift, mix, part, *learned = inputs
        ctx.save_for_backward(value, codes, scale, shift, mix, *learned)
        ctx.part = part

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, codes, scale, shift, mix, *learned = ctx.saved_tensors
        quantized = Quantized(codes, scale, shift)
        of_value, *of_learned = ctx.part.gradients(grad.float(), value.float(), quantized, *learned)
        if mix is not None:
            of_value = grad + mix * (of_value - grad)
            of_learned = [mix * g for g in of_learned]
        return of_value.to(grad.dtype), None, None, None, None, None, *of_learned


def carried(
    value: Tensor,
    part: WeightQuantizer | ActivationQuantizer,
    quantized: Quantized,
    mix: Tensor | None = None,
) -> Tensor:
    """`value` with the part's rule for its gradient, given what the part made of it.

    `mix` in [0, 1] is how far quantization is phased in: the rest of the gradient goes straight through.
    """
    if not part.has_rule:
        return value
    aliased: Tensor = Carrier.apply(value, *quantized, mix, part, *part.learned())
    return aliased


class OutputCarrier(torch.autograd.Function):
    """An alias of a layer's output; its backward hands on what a part makes of the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, part: GradientQuantizer) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.part = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.part(grad.float()).to(grad.dtype), None
