"""The backend: what a layer in training holds of a kernel. Here is torch's; the others give its bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.convolution import exact_conv
from bitexp.quant.levels import Levels
from bitexp.quant.norms import Normed, normalize
from bitexp.quant.spec import EPS, LayerSpec, Norm
from bitexp.quant.sums import ordered_means


class Call(NamedTuple):
    """What of one forward of a layer is no tensor.

    `dtype` is that of the output; `grad_dtype`, fp32 or bf16, that of the factors in the backward's two
    products; `fused` says whether the backend computes the whole step, or torch with the backend's product.
    """

    spec: LayerSpec
    backend: Backend
    dtype: torch.dtype
    grad_dtype: torch.dtype
    fused: bool


Saved = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""activation codes, their scale, and the mean (None where none is subtracted) and 1/std of the norm"""

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
"""with respect to the input, the latent weights and the bias"""


class Backend:
    """How a layer sums over codes, rounds its weights and makes a training step. A kernel brings its own."""

    def product(self, x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        """The sum over int8 codes (or floats) of the input times int8 codes of the weights, as fp32."""
        return float_product(x, weight, spec)

    def scaled_product(
        self,
        x: Tensor,
        x_scale: Tensor | None,
        weight: Tensor,
        w_scale: Tensor,
        bias: Tensor | None,
        spec: LayerSpec,
    ) -> Tensor | None:
        """The whole output as `quant.product.scaled_product` defines it, or None to have it made there."""
        return None

    def normalize(self, x: Tensor, norm: Norm, dim: int) -> Normed:
        """The norm of fp32 x over `dim`, with the bits of `quant.norms.normalize`."""
        return normalize(x, norm, dim)

    def abs_median(self, rows: Tensor) -> Tensor:
        """`[rows, weights] -> [rows, 1]`: the median of |W|, the lower of two middle values."""
        return rows.abs().median(-1, keepdim=True).values

    def means(self, rows: Tensor) -> Tensor:
        """`[rows, weights] -> [rows, 1]`: the mean of W."""
        return ordered_means(rows)

    def abs_means(self, rows: Tensor) -> Tensor:
        """`[rows, weights] -> [rows, 1]`: the mean of |W|."""
        return ordered_means(rows.abs())

    def signs(self, rows: Tensor, middle: Tensor) -> Tensor:
        """int8 codes, 1 where a weight is above `middle`, `[rows, 1]`, else -1."""
        return torch.where(rows > middle, 1.0, -1.0).to(torch.int8)

    def rounded(self, rows: Tensor, scale: Tensor, levels: Levels) -> Tensor:
        """int8 `round(W / scale)` clamped to `low..high`, half to even; `scale` is `[rows, 1]`."""
        # times the reciprocal, as `bitlinear` and transformers do: a division flips a code in a million
        # hardtanh_ is the clamp in place that vmap has a rule for
        return F.hardtanh_((rows * scale.reciprocal()).round_(), levels.low, levels.high).to(torch.int8)

    def rounded_by_means(self, weight: Tensor, shape: torch.Size, levels: Levels) -> tuple[Tensor, Tensor]:
        """Codes `[out, ...]` that are `rounded` with the scale `abs_means`, `EPS` at least, and that scale.

        Nothing of it has a graph. `shape` is that of the scales, each for as many weights that follow each
        other.
        """
        return self._rounded_by(self.abs_means, weight, shape, levels)

    def rounded_by_medians(self, weight: Tensor, shape: torch.Size, levels: Levels) -> tuple[Tensor, Tensor]:
        """The same with the scale `abs_median`."""
        return self._rounded_by(self.abs_median, weight, shape, levels)

    def _rounded_by(
        self, measure: Callable[[Tensor], Tensor], weight: Tensor, shape: torch.Size, levels: Levels
    ) -> tuple[Tensor, Tensor]:
        rows = weight.detach().float().reshape(shape.numel(), -1)
        scale = measure(rows).clamp(min=EPS)
        return self.rounded(rows, scale, levels).reshape(weight.shape), scale.reshape(shape)

    def signs_by_means(self, weight: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Codes by `signs` around `means`, with the scale `abs_means`."""
        rows = weight.detach().float().reshape(shape.numel(), -1)
        scale = self.abs_means(rows).clamp(min=EPS)
        return self.signs(rows, self.means(rows)).reshape(weight.shape), scale.reshape(shape)

    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: LayerSpec) -> bool:
        """Whether `forward` and `backward` can compute this layer on this input of plain numbers."""
        return False

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, call: Call
    ) -> tuple[Tensor, *Saved]:
        """The output in `call.dtype`, no view of anything, and what the backward needs.

        All of it has the bits that torch's operators give, as `QuantizedProduct` uses them.
        """
        raise NotImplementedError

    def backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        saved: Saved,
        w_codes: Tensor,
        w_scale: Tensor,
        call: Call,
        needed: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed: x's in its own dtype or fp32, the others in fp32.

        On the CPU they have the bits of `quant.backward.straight_through`.
        """
        raise NotImplementedError


def float_product(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """The sum in fp32: exact for codes while it stays within 2^24.

    Wider sums go by fp64, which holds them exactly, and are rounded to fp32 once, as an int32 sum would be.
    """
    codes = x.dtype == torch.int8
    dtype = torch.float64 if spec.wide and codes else torch.float32
    x, w = x.to(dtype), weight.to(dtype)
    if spec.conv is None:
        return F.linear(x, w).float()
    if codes:
        return exact_conv(x, w, spec.conv).float()
    stride, padding, dilation, groups = spec.conv
    return F.conv2d(x, w, None, stride, padding, dilation, groups)


TORCH = Backend()
"""The backend of every layer that was given no other."""
