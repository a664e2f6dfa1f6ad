"""The training step of a linear layer on a GPU: int8 forwards, straight-through backwards by torch.

The norm is torch's, as in evaluation, whose bits the forward has; then codes are a launch, and product,
scales and bias another. Besides x, int8 codes and three values per token are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.kernels.gpu.product import Int8GpuBackend
from bitexp.quant.backend import Call, Grads, Saved
from bitexp.quant.modes import readable
from bitexp.quant.product import Quantized
from bitexp.quant.spec import LayerSpec, rows


class GpuBackend(Int8GpuBackend):
    """See `bitexp.quant.backend.Backend`."""

    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: LayerSpec) -> bool:
        """Whether this is a linear layer on a GPU with activations by absmax and no scales per group."""
        linear = spec.conv is None and spec.absmax is not None and w_scale.dim() < 2
        return bool(linear and x.is_cuda and x.numel())

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, call: Call
    ) -> tuple[Tensor, *Saved]:
        """`[..., K]` -> `[..., N]` in `call.dtype`, and what the backward needs."""
        from bitexp.kernels.gpu.int8 import int8_gemm
        from bitexp.kernels.gpu.quantize import quantize

        spec = call.spec
        assert spec.absmax is not None
        normed, mean, rstd = self.normalize(x.float(), spec.norm, -1)
        q = quantize(token_rows(normed), spec.absmax, x.shape[-1])
        kind = "none" if bias is None else spec.bias
        codes = q.codes.view(x.shape)
        y = int8_gemm(codes, w_codes, q.scale, w_scale, bias, kind, call.dtype)
        return y, codes, q.scale.view(*x.shape[:-1], 1), mean, rstd

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
        """The needed gradients with respect to x (in its dtype), the latent weights and the bias (fp32)."""
        from bitexp.kernels.gpu.quantize import norm_backward

        codes, scale, mean, rstd = saved
        assert scale is not None
        tokens, factor = rows(grad), call.grad_dtype
        g = tokens.to(factor)
        grad_x = grad_w = grad_b = None
        if needed[2]:
            scaled = call.spec.bias == "scaled"
            per_output = tokens.float() * (scale.view(-1, 1) * w_scale) if scaled else tokens
            grad_b = per_output.sum(0, dtype=torch.float32)
        if needed[1]:
            inputs = torch.empty(codes.shape, dtype=factor, device=codes.device)
            torch.mul(codes, scale, out=inputs)
            grad_w = (g.t() @ rows(inputs)).float()
        if needed[0]:
            grad_x = g @ Quantized(w_codes, w_scale).dequantized().to(factor)
            if x is not None:
                grad_x = norm_backward(grad_x, token_rows(x), call.spec.norm, flat(mean), flat(rstd))
            grad_x = grad_x.view(codes.shape)
        return grad_x, grad_w, grad_b

    def abs_median(self, rows: Tensor) -> Tensor:
        """`rows.abs().median(-1, keepdim=True).values`, the same bits."""
        from bitexp.kernels.gpu.scale import abs_median

        if rows.is_cuda and readable(rows):
            return abs_median(rows)
        return super().abs_median(rows)


def token_rows(x: Tensor) -> Tensor:
    """All tokens below each other, each contiguous."""
    x = rows(x.detach())
    return x if x.stride(-1) == 1 else x.contiguous()


def flat(x: Tensor | None) -> Tensor | None:
    """Values per token in one dimension."""
    return None if x is None else x.reshape(-1)
