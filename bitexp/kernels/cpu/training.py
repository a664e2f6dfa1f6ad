"""The training step of a linear layer on the CPU: integers forwards, fp32 or bf16 straight-through backwards.

Tokens are taken in parts that stay in the cache of a core between the passes over them, so that no float copy
of a whole activation is ever made. Output and gradients have the bits that torch's operators give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bitexp.kernels.cpu.layout import NORMS
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


def plain(x: Tensor) -> Tensor:
    """Contiguous fp32, the tensor itself where it is that."""
    return x if x.dtype is F32 and x.is_contiguous() else x.float().contiguous()


def some_rows(x: Tensor, part: slice, whole: bool) -> Tensor:
    """Some of the tokens as `plain` memory; all of them in whatever shape x has."""
    return plain(x if whole else rows(x)[part])


def share(
    function: Callable[..., None], given: tuple[int, ...], tokens: int, size: int, *alive: object
) -> None:
    """Calls a compiled function for ranges of tokens that make up all, each thread for some of them.

    Args:
        given: the arguments before the range; alive: whose memory they are addresses of.
        size: how many numbers a call goes through.
    """
    if size < WORTH or (threads := torch.get_num_threads()) == 1:
        function(*given, 0, tokens)
        return
    together(threads, [partial(for_some, function, given, part, alive) for part in shares(tokens, threads)])


def for_some(
    function: Callable[..., None], given: tuple[int, ...], part: tuple[int, int], alive: object
) -> None:
    """One of the calls of `share`, which holds the memory as long as it runs."""
    function(*given, *part)


class CpuBackend(Int8Backend):
    """See `bitexp.quant.backend.Backend`."""

    def takes(self, x: Tensor, weight: Tensor, w_scale: Tensor, spec: LayerSpec) -> bool:
        linear = spec.conv is None and spec.absmax is not None and w_scale.dim() < 2
        return linear and x.device.type == "cpu" and x.numel() > 0 and x.shape[-1] > 1

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, call: Call
    ) -> tuple[Tensor, *Saved]:
        from bitexp.kernels.cpu.norm_quant import norm_quantize, rescale

        spec = call.spec
        assert spec.absmax is not None
        (outputs, inputs), norm, same = w_codes.shape, NORMS[spec.norm], call.dtype is F32
        lead, tokens = x.shape[:-1], x.numel() // inputs
        y = torch.empty(*lead, outputs, dtype=call.dtype)
        codes = torch.empty(x.shape, dtype=torch.int8)
        kept = torch.empty(norm + 1, *lead, 1, dtype=F32).unbind()
        scale, rstd, mean = (*kept, None, None)[:3]
        q, out = rows(codes), rows(y)
        result = out if same else torch.empty(min(tokens, width(inputs, outputs)), outputs, dtype=F32)
        sums, factors = result.view(torch.int32), w_scale.contiguous()
        weights = w_codes.t()
        offsets = None if bias is None else bias.contiguous()
        of_layer = (
            factors.data_ptr(), factors.numel(), address(offsets), int(spec.bias == "scaled"), outputs,
        )  # fmt: skip
        for part in token_parts(tokens, inputs, outputs):
            start, count = part.start, part.stop - part.start
            whole = count == tokens
            source, some = some_rows(x, part, whole), q if whole else q[part]
            place = sums if whole else sums[part] if same else sums[:count]
            of_tokens = tuple(0 if t is None else t.data_ptr() + 4 * start for t in (scale, mean, rstd))
            given = source.data_ptr(), some.data_ptr(), *of_tokens, inputs, spec.absmax, norm
            share(norm_quantize(), given, count, source.numel(), source, codes, kept)
            int_mm(some, weights, out=place)
            given = place.data_ptr(), of_tokens[0], *of_layer
            share(rescale(), given, count, place.numel(), result, kept, factors, offsets)
            if not same:
                out[part] = result[:count]
        return y, codes, scale, mean, rstd

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

        codes, scale, mean, rstd = saved
        assert scale is not None
        need_x, need_w, need_b = needed
        (outputs, inputs), dtype, scaled = w_codes.shape, call.grad_dtype, call.spec.bias == "scaled"
        of_grad, tokens = rows(grad), codes.numel() // inputs
        weights = grad_x = grad_w = grad_b = of_grad_x = None
        if need_x:
            grad_x = torch.empty(codes.shape, dtype=F32)
            of_grad_x = rows(grad_x)
            latent = torch.empty(outputs, inputs, dtype=F32)
            w_codes, factors = w_codes.contiguous(), w_scale.contiguous()
            of_latent = factors.data_ptr(), factors.numel(), latent.data_ptr(), inputs, 0, outputs
            dequantize_rows()(w_codes.data_ptr(), *of_latent)
            weights = latent if dtype is F32 else latent.to(dtype)
        if need_w:
            grad_w = torch.empty(outputs, inputs, dtype=F32)
        scratch = torch.empty(min(tokens, width(inputs, outputs)), inputs, dtype=F32)
        for part in token_parts(tokens, inputs, outputs):
            start, count = part.start, part.stop - part.start
            whole = count == tokens
            g = some = of_grad if whole else of_grad[part]
            if dtype is not g.dtype or not g.is_contiguous():
                g = g.to(dtype).contiguous()
            room = scratch if whole else scratch[:count]
            if need_b:
                of_bias = some if some.dtype is F32 else some.float()
                if scaled:
                    of_bias = of_bias * (rows(scale)[part] * w_scale)
                of_bias = of_bias.sum(0)
                grad_b = of_bias if grad_b is None else grad_b.add_(of_bias)
            if grad_w is not None:
                place = codes.data_ptr() + inputs * start, scale.data_ptr() + 4 * start
                of_part = *place, count, room.data_ptr(), inputs
                share(dequantize_rows(), of_part, count, room.numel(), saved, scratch)
                add_product(grad_w, g, room if dtype is F32 else room.to(dtype), first=start == 0)
            if of_grad_x is not None and weights is not None:
                target = of_grad_x if whole else of_grad_x[part]
                into = target if x is None else room
                if dtype is F32:
                    torch.mm(g, weights, out=into)
                else:
                    into.copy_(g @ weights)
                if x is not None:
                    source = some_rows(x, part, whole)
                    of_tokens = (0 if t is None else t.data_ptr() + 4 * start for t in (mean, rstd))
                    given = room.data_ptr(), source.data_ptr(), *of_tokens, target.data_ptr(), inputs
                    share(norm_backward(), given, count, room.numel(), scratch, source, saved, grad_x)
        return grad_x, grad_w, grad_b

    def normalize(self, x: Tensor, norm: Norm, dim: int) -> Normed:
        if norm == "none" or dim != -1 or not (compilable(x) and x.is_contiguous() and x.numel()):
            return super().normalize(x, norm, dim)
        from bitexp.kernels.cpu.norm_quant import normalize

        y, features, centered = torch.empty_like(x), x.shape[-1], norm == "layer"
        kept = torch.empty(1 + centered, *x.shape[:-1], 1, dtype=F32).unbind()
        rstd, mean = (*kept, None)[:2]
        given = x.data_ptr(), y.data_ptr(), address(mean), address(rstd), features, int(centered)
        share(normalize(), given, x.numel() // features, x.numel(), x, y, kept)
        return y, mean, rstd

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

        rows, scale = rows.contiguous(), scale.contiguous()
        codes, (count, features) = torch.empty(rows.shape, dtype=torch.int8), rows.shape
        bounds = levels.low, levels.high
        round_rows()(rows.data_ptr(), scale.data_ptr(), *bounds, codes.data_ptr(), features, count)
        return codes


def address(x: Tensor | None) -> int:
    """Of a tensor's memory; 0 for none."""
    return 0 if x is None else x.data_ptr()


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
