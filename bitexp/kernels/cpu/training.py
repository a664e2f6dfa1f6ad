"""The training step of a linear layer on the CPU: integers forwards, fp32 or bf16 straight-through backwards.

Tokens are taken in parts that stay in the cache of a core between the passes over them, so that no float copy
of a whole activation is ever made. Output and gradients have the bits that torch's operators give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitexp.kernels.cpu.memory import array
from bitexp.kernels.cpu.threads import shares, together
from bitexp.kernels.int8 import Int8Backend
from bitexp.quant.backend import Call, Grads, Saved
from bitexp.quant.backward import token_parts, width
from bitexp.quant.levels import Levels
from bitexp.quant.modes import int_mm, readable
from bitexp.quant.norms import Normed
from bitexp.quant.spec import LayerSpec, Norm, rows

F32 = torch.float32  # said everywhere, since the default may be bf16

WORTH = 2**18
"""Numbers in an array from which a second thread pays: sharing one costs about 30 us."""

LONG = 4096
"""Weights in a row from which on its median is found faster by the compiled way."""


class Rows:
    """A tensor `[tokens, features]`, and its parts as arrays of fp32, copied only where it is none."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        same = tensor.dtype == F32 and tensor.is_contiguous()
        self._array: Any = array(tensor) if same else None

    def array(self, part: slice) -> Any:
        """Some of the rows."""
        if self._array is not None:
            return self._array[part]
        return array(self.tensor[part].float().contiguous())


def flat(x: Tensor | None) -> Any:
    """Values per token as an array of one dimension."""
    return None if x is None else x.reshape(-1).numpy()


def per_output(w_scale: Tensor, outputs: int) -> Any:
    """The scale of each output as an array."""
    return np.full(outputs, w_scale.numpy())


def share(function: Callable[..., None], rows: tuple[Any, ...], *rest: Any) -> None:
    """Calls a compiled function on arrays of as many rows, each thread on some of the rows."""
    threads = torch.get_num_threads()
    if threads == 1 or rows[0].size < WORTH:
        function(*rows, *rest)
        return
    together(
        threads,
        [partial(function, *(r[a:b] for r in rows), *rest) for a, b in shares(len(rows[0]), threads)],
    )


class CpuBackend(Int8Backend):
    """See `bitexp.quant.backend.Backend`."""

    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: LayerSpec) -> bool:
        linear = spec.conv is None and spec.absmax is not None and w_scale.dim() < 2
        return linear and x.device.type == "cpu" and x.numel() > 0 and x.shape[-1] > 1

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, call: Call
    ) -> tuple[Tensor, *Saved]:
        from bitexp.kernels.cpu.norm_quant import norm_quantize, quantize, rescale

        spec = call.spec
        assert spec.absmax is not None
        qmax, scaled = np.float32(spec.absmax), spec.bias == "scaled"
        outputs, inputs = w_codes.shape
        y = torch.empty(*x.shape[:-1], outputs, dtype=call.dtype)
        codes = torch.empty(x.shape, dtype=torch.int8)
        scale, mean, rstd = (torch.empty(*x.shape[:-1], 1, dtype=F32) for _ in range(3))
        result = rows(y) if call.dtype == F32 else torch.empty(width(inputs, outputs), outputs, dtype=F32)
        of_x, q, sums, out = Rows(rows(x.detach())), rows(codes), result.view(torch.int32), rows(y)
        q_array, sums_array = q.numpy(), array(sums)
        s, m, r = flat(scale), flat(mean), flat(rstd)
        scales = per_output(w_scale, outputs)
        offsets = array(torch.empty(0, dtype=F32) if bias is None else bias.detach().contiguous())
        for part in token_parts(len(q), inputs, outputs):
            if spec.norm == "none":
                share(quantize, (of_x.array(part), q_array[part], s[part]), qmax)
            else:
                arrays = of_x.array(part), q_array[part], s[part], m[part], r[part]
                share(norm_quantize, arrays, qmax, spec.norm == "layer")
            place = part if out.dtype == result.dtype else slice(0, part.stop - part.start)
            int_mm(q[part], w_codes.t(), out=sums[place])
            share(rescale, (sums_array[place], s[part]), scales, offsets, scaled)
            if out.dtype != result.dtype:
                out[part] = result[place]
        if spec.norm == "none":
            return y, codes, scale, None, None
        return y, codes, scale, mean if spec.norm == "layer" else None, rstd  # zeros are no mean, see Saved

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
        from bitexp.kernels.cpu.norm_quant import dequantize_rows, norm_backward

        codes, (scale, mean, rstd) = rows(saved[0]).numpy(), (flat(t) for t in saved[1:])
        saved_scale = rows(saved[1])  # type: ignore[arg-type]
        if mean is None and rstd is not None:
            mean = np.zeros_like(rstd)
        need_x, need_w, need_b = needed
        outputs, inputs = w_codes.shape
        dtype, latent = call.grad_dtype, torch.empty(outputs, inputs, dtype=F32)
        dequantize_rows(w_codes.numpy(), per_output(w_scale, outputs), latent.numpy())
        weights = latent.to(dtype)
        of_grad, of_x = Rows(rows(grad)), None if x is None else Rows(rows(x.detach()))
        grad_x = torch.empty(saved[0].shape, dtype=F32) if need_x else None
        of_grad_x = None if grad_x is None else Rows(rows(grad_x))
        grad_w = torch.empty(outputs, inputs, dtype=F32) if need_w else None
        grad_b = None
        tokens = min(len(codes), width(inputs, outputs))
        scratch = Rows(torch.empty(tokens, inputs, dtype=F32))
        for part in token_parts(len(codes), inputs, outputs):
            g = of_grad.tensor[part]
            if dtype != g.dtype or not g.is_contiguous():
                g = g.to(dtype).contiguous()
            here = slice(0, len(g))
            if need_b:
                of_bias = of_grad.tensor[part].float()
                if call.spec.bias == "scaled":
                    of_bias = of_bias * (saved_scale[part] * w_scale)
                sums = of_bias.sum(0)
                grad_b = sums if grad_b is None else grad_b.add_(sums)
            if grad_w is not None:
                share(dequantize_rows, (codes[part], scale[part], scratch.array(here)))
                add_product(grad_w, g, scratch.tensor[here].to(dtype), first=part.start == 0)
            if of_grad_x is not None:
                if of_x is None:
                    of_grad_x.tensor[part] = g @ weights
                else:
                    of_normed = scratch.array(here)
                    if dtype == F32:
                        torch.mm(g, weights, out=scratch.tensor[here])
                    else:
                        scratch.tensor[here] = g @ weights
                    arrays = of_normed, of_x.array(part), mean[part], rstd[part], of_grad_x.array(part)
                    share(norm_backward, arrays, call.spec.norm == "layer")
        return grad_x, grad_w, grad_b

    def normalize(self, x: Tensor, norm: Norm, dim: int) -> Normed:
        if norm == "none" or dim != -1 or not (compilable(x) and x.is_contiguous() and x.numel()):
            return super().normalize(x, norm, dim)
        from bitexp.kernels.cpu.norm_quant import normalize

        y, shape = torch.empty_like(x), (-1, x.shape[-1])
        kept = torch.empty(2, *x.shape[:-1], 1, dtype=F32)
        mean, rstd = kept.numpy().reshape(2, -1)
        share(normalize, (array(x).reshape(shape), y.numpy().reshape(shape), mean, rstd), norm == "layer")
        return y, kept[0] if norm == "layer" else None, kept[1]

    def abs_median(self, rows: Tensor) -> Tensor:
        if not compilable(rows) or rows.shape[-1] < LONG:
            return super().abs_median(rows)
        from bitexp.kernels.cpu.median import medians

        out = torch.empty(len(rows), 1, dtype=F32)
        medians(array(rows.contiguous().view(torch.int32)), out.view(torch.int32).view(-1).numpy())
        return out

    def rounded(self, rows: Tensor, scale: Tensor, levels: Levels) -> Tensor:
        if not (compilable(rows) and compilable(scale)):
            return super().rounded(rows, scale, levels)
        from bitexp.kernels.cpu.norm_quant import round_rows

        codes = torch.empty(rows.shape, dtype=torch.int8)
        round_rows(array(rows.contiguous()), flat(scale), levels.low, levels.high, codes.numpy())
        return codes


def compilable(x: Tensor) -> bool:
    """Whether compiled code takes the tensor: fp32 numbers in main memory."""
    return x.dtype == F32 and x.is_cpu and readable(x)


def add_product(total: Tensor, grad: Tensor, inputs: Tensor, first: bool) -> None:
    """Adds `grad^T @ inputs`, first to nothing; the total is fp32, whatever the factors are."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.t(), inputs, beta=0 if first else 1)
    elif first:
        total.copy_(grad.t() @ inputs)
    else:
        total += grad.t() @ inputs
