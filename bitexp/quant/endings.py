"""What comes after the product of a layer and is no bias; the same for trained and for frozen layers."""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.quant.norms import normed
from bitexp.quant.spec import ConvArgs, Geometry, LayerSpec


def constant_codes(x: Tensor, shift: Tensor, conv: ConvArgs | None) -> tuple[Tensor, Tensor]:
    """Codes and scale of one token (one image) of the value `shift`, for inputs like x.

    A product of its own, so that the padding of a convolution, which is zero and not this value, is left out.
    """
    features = 1 if conv is None else 3
    shape = (*[1] * (x.dim() - features), *x.shape[-features:])
    codes = torch.ones(shape, dtype=torch.int8, device=x.device)
    return codes, shift.reshape([1] * x.dim())


def ended(y: Tensor, addend: Tensor | None, bias: Tensor | None, spec: LayerSpec) -> Tensor:
    """The output from the product y: with what a transform adds, then its norm, if any, and the bias."""
    y = y if addend is None else y + addend
    if spec.output_norm == "none":
        return y
    at = Geometry(spec.conv)
    y = normed(y, spec.output_norm, at.feature_dim)
    return y if bias is None else y + at.spread(bias.float())
