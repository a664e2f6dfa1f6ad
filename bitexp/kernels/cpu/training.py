"""The training step of a linear layer on the CPU: integers forwards, fp32 or bf16 straight-through backwards.

Tokens are taken in parts that stay in the second-level cache between the passes over them, so that no float
copy of a whole activation is ever made. The parts do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bitexp.kernels.cpu.jit import missing
from bitexp.quant.function import Grads, Saved, Spec, plain
from bitexp.quant.product import dequantize, rows
from bitexp.quant.registry import abs_median

PART = 2**19
"""Floats in the widest part: 2 MiB."""

LONG = 4096
"""Weights in a row from which on its median is found faster by the compiled way."""


def parts(tokens: int, *features: int) -> Iterator[slice]:
    """Slices of the tokens."""
    size = max(64, PART // max(features))
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


class CpuTraining:
    """See `bitexp.quant.function.FusedLinear`."""

    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: Spec) -> bool:
        linear = spec.conv is None and spec.qmax > 0 and w_scale.dim() < 2
        return linear and x.device.type == "cpu" and x.numel() > 0 and x.shape[-1] > 1

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, spec: Spec
    ) -> tuple[Tensor, *Saved]:
        from bitexp.kernels.cpu.norm_quant import F32, norm_quantize, quantize, rescale

        flat, outputs = rows(x), w_codes.shape[0]
        tokens, inputs = flat.shape
        y = torch.empty(*x.shape[:-1], outputs, dtype=spec.dtype)
        codes = torch.empty(x.shape, dtype=torch.int8)
        scale, mean, rstd = torch.empty(3, *x.shape[:-1], 1).unbind()
        steps = w_scale.expand(outputs).contiguous().numpy()
        offsets = torch.empty(0).numpy() if bias is None else bias.detach().numpy()
        flat_y, flat_codes = rows(y), rows(codes)
        per_token = [t.view(-1).numpy() for t in (scale, mean, rstd)]
        for part in parts(tokens, inputs, outputs):
            s, m, r = (t[part] for t in per_token)
            q, x_part = flat_codes[part], flat[part].detach().float().contiguous().numpy()
            if spec.norm == "none":
                quantize(x_part, F32(spec.qmax), q.numpy(), s)
            else:
                norm_quantize(x_part, spec.norm == "layer", F32(spec.qmax), q.numpy(), s, m, r)
            wide = spec.dtype == torch.float32
            sums = flat_y[part].view(torch.int32) if wide else torch.empty(len(q), outputs, dtype=torch.int32)
            torch._int_mm(q, w_codes.t(), out=sums)
            rescale(sums.numpy(), s, steps, offsets, spec.scaled_bias)
            if not wide:
                flat_y[part].copy_(sums.view(torch.float32))
        none = spec.norm == "none"
        return y, codes, scale, None if none else mean, None if none else rstd

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
        from bitexp.kernels.cpu.norm_quant import add_rows, dequantize_rows, norm_backward

        codes, scale, mean, rstd = saved
        assert scale is not None
        need_x, need_w, need_b = needed
        outputs, inputs = w_codes.shape
        dtype = spec.grad_dtype
        weights = dequantize(w_codes, w_scale).to(dtype)
        grad_x = torch.empty(codes.shape) if need_x else None
        grad_w = torch.zeros(outputs, inputs) if need_w else None
        grad_b = torch.zeros(outputs) if need_b else None
        flat_grad, flat_codes, flat_scale = rows(grad), rows(codes), scale.view(-1)
        flat_x, flat_grad_x = None if x is None else rows(x), None if grad_x is None else rows(grad_x)
        for part in parts(len(flat_codes), inputs, outputs):
            g = flat_grad[part].to(dtype).contiguous()
            if grad_b is not None:
                w = (flat_scale[part] * w_scale if spec.scaled_bias else flat_scale[:0]).numpy()
                of_part = torch.zeros(outputs)
                add_rows(flat_grad[part].float().contiguous().numpy(), w, of_part.numpy())
                grad_b += of_part
            if grad_w is not None:
                activations = torch.empty(len(g), inputs)
                dequantize_rows(flat_codes[part].numpy(), flat_scale[part].numpy(), activations.numpy())
                if dtype == torch.float32:
                    grad_w.addmm_(g.t(), activations)
                else:
                    grad_w += g.t() @ activations.to(dtype)
            if flat_grad_x is not None:
                if flat_x is None:
                    flat_grad_x[part] = g @ weights
                else:
                    x_part = flat_x[part].detach().float().contiguous().numpy()
                    norm_backward((g @ weights).float().numpy(), x_part, spec.norm == "layer",
                        mean.view(-1)[part].numpy(), rstd.view(-1)[part].numpy(), flat_grad_x[part].numpy())
        return grad_x, grad_w, grad_b

    def abs_median(self, rows: Tensor) -> Tensor:
        if not plain(rows) or rows.device.type != "cpu" or rows.dtype != torch.float32:
            return abs_median(rows)
        if rows.shape[-1] < LONG:
            return abs_median(rows)
        from bitexp.kernels.cpu.median import medians

        out = torch.empty(len(rows), 1)
        medians(rows.contiguous().view(torch.int32).numpy(), out.view(torch.int32).view(-1).numpy())
        return out


def training() -> CpuTraining | None:
    """The training step for kernels that multiply int8 codes on this machine, where it can be compiled."""
    return None if missing() or not torch.cpu._is_vnni_supported() else CpuTraining()
