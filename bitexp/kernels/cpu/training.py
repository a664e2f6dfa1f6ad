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


def width(*features: int) -> int:
    """Tokens in a part."""
    return max(64, PART // max(features))


def parts(tokens: Tensor, *features: int) -> Iterator[slice]:
    """Slices of the tokens `[tokens, ...]`."""
    size = width(*features)
    return (slice(start, start + size) for start in range(0, len(tokens), size))


def floats(x: Tensor) -> Any:
    """As an array of fp32, copied only where it is none."""
    return x.float().contiguous().numpy()


def flat(x: Tensor) -> Any:
    """Values per token as an array of one dimension."""
    return x.reshape(-1).numpy()


class CpuTraining:
    """See `bitexp.quant.function.FusedLinear`."""

    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: Spec) -> bool:
        linear = spec.conv is None and spec.qmax > 0 and w_scale.dim() < 2
        return linear and x.device.type == "cpu" and x.numel() > 0 and x.shape[-1] > 1

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, spec: Spec
    ) -> tuple[Tensor, *Saved]:
        from bitexp.kernels.cpu.norm_quant import F32, norm_quantize, quantize, rescale

        outputs, inputs = w_codes.shape
        y = torch.empty(*x.shape[:-1], outputs, dtype=spec.dtype)
        codes = torch.empty(x.shape, dtype=torch.int8)
        scale, mean, rstd = (torch.empty(*x.shape[:-1], 1) for _ in range(3))
        steps = w_scale.expand(outputs).contiguous().numpy()
        offsets = torch.empty(0) if bias is None else bias.detach()
        tokens = [rows(t) for t in (x.detach(), y, codes, scale, mean, rstd)]
        same = spec.dtype == torch.float32
        scratch = None if same else torch.empty(width(inputs, outputs), outputs)
        for part in parts(tokens[0], inputs, outputs):
            x_part, y_part, q, s, m, r = (t[part] for t in tokens)
            wide, s = floats(x_part), flat(s)
            if spec.norm == "none":
                quantize(wide, F32(spec.qmax), q.numpy(), s)
            else:
                norm_quantize(wide, spec.norm == "layer", F32(spec.qmax), q.numpy(), s, flat(m), flat(r))
            result = y_part if scratch is None else scratch[: len(q)]
            sums = result.view(torch.int32)
            torch._int_mm(q, w_codes.t(), out=sums)
            rescale(sums.numpy(), s, steps, offsets.numpy(), spec.scaled_bias)
            if not same:
                y_part.copy_(result)
        return (y, codes, scale, None, None) if spec.norm == "none" else (y, codes, scale, mean, rstd)

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
        size = width(inputs, outputs)
        scratch = torch.empty(size, inputs)
        factor = scratch if dtype == torch.float32 else torch.empty(size, inputs, dtype=dtype)
        grad, codes, scale = rows(grad), rows(codes), rows(scale)
        for part in parts(codes, inputs, outputs):
            g = grad[part].to(dtype).contiguous()
            floating, factors = scratch[: len(g)], factor[: len(g)]
            if grad_b is not None:
                of_part = torch.zeros(outputs)
                per_token = scale[part] * w_scale if spec.scaled_bias else scale[:0]
                add_rows(floats(grad[part]), flat(per_token), of_part.numpy())
                grad_b += of_part
            if grad_w is not None:
                dequantize_rows(codes[part].numpy(), flat(scale[part]), floating.numpy())
                if dtype == torch.float32:
                    grad_w.addmm_(g.t(), floating)
                else:
                    grad_w += g.t() @ factors.copy_(floating)
            if grad_x is not None:
                target = rows(grad_x)[part]
                torch.mm(g, weights, out=target if x is None and factor is scratch else factors)
                if x is not None:
                    assert mean is not None and rstd is not None
                    wide = floats(rows(x.detach())[part])
                    statistics = flat(rows(mean)[part]), flat(rows(rstd)[part])
                    norm_backward(floats(factors), wide, spec.norm == "layer", *statistics, target.numpy())
                elif factor is not scratch:
                    target.copy_(factors)
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
