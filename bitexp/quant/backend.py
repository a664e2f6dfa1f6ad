"""What a kernel gives to a layer in training: a product, a median, rounding, a whole fused step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.spec import ConvArgs, Norm

Product = Callable[[Tensor, Tensor, ConvArgs | None], Tensor]
"""(int8 codes or floats of the input, int8 codes of the weights, conv) -> the sum over them as fp32"""


class Arithmetic:
    """What quantizing weights takes besides a mean, by torch; kernels may bring their own, bit for bit."""

    def abs_median(self, rows: Tensor) -> Tensor:
        """`[rows, weights] -> [rows, 1]`: the median of |W|, the lower of two middle values."""
        return rows.abs().median(-1, keepdim=True).values

    def rounded(self, rows: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        """int8 `round(W / step)` clamped to `low..high`, half to even; `step` is `[rows, 1]`."""
        # times the reciprocal, as `bitlinear` and transformers do: a division flips a code in a million
        # hardtanh_ is the clamp in place that vmap has a rule for
        return F.hardtanh_((rows * step.reciprocal()).round_(), low, high).to(torch.int8)


class Spec(NamedTuple):
    """What of a layer is no tensor; `qmax` 0 leaves the activations floats.

    `dtype` is that of the output; `grad_dtype`, fp32 or bf16, that of the factors in the backward's
    two products. `fused` computes a whole linear layer where it is given, else torch does.
    """

    conv: ConvArgs | None
    norm: Norm
    qmax: int
    scaled_bias: bool
    product: Product
    dtype: torch.dtype
    grad_dtype: torch.dtype
    fused: FusedLinear | None


Saved = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""activation codes, their step, and the mean and 1/std of the norm"""

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
"""with respect to the input, the latent weights and the bias"""


class FusedLinear(Arithmetic, ABC):
    """A linear layer's training step by other means than torch's operators, on plain tensors.

    It computes what `QuantizedProduct` computes, with the same codes for the same normed input; its norm
    may round otherwise. Evaluation goes by `Product`, with torch's own norm.
    """

    @abstractmethod
    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: Spec) -> bool:
        """Whether it can compute this layer on this input."""

    @abstractmethod
    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, spec: Spec
    ) -> tuple[Tensor, *Saved]:
        """The output in `spec.dtype`, no view of anything, and what the backward needs."""

    @abstractmethod
    def backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        saved: Saved,
        w_codes: Tensor,
        w_scale: Tensor,
        spec: Spec,
        needed: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed: x's in its own dtype or fp32, the others in fp32."""
