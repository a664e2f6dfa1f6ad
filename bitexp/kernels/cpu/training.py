"""The training step of a linear layer on the CPU: integers forwards, fp32 or bf16 straight-through backwards.

Tokens are taken in parts that stay in the cache of a core between the passes over them, so that no float copy
of a whole activation is ever made; bf16 is read and written where it lies. Output and gradients have the bits
that torch's operators give.

In the small models of the recipes a call of torch takes as long as the work it is for, so there are few.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitexp.kernels.cpu.layout import NORMS
from bitexp.kernels.cpu.threads import shares, together
from bitexp.kernels.int8 import Int8Backend
from bitexp.quant.backend import Call, Grads, Saved
from bitexp.quant.backward import width
from bitexp.quant.levels import Levels
from bitexp.quant.modes import followed, in_memory, readable
from bitexp.quant.norms import Normed
from bitexp.quant.spec import LayerSpec, Norm, rows

F32 = torch.float32  # said everywhere, since the default may be bf16
SIZES = {torch.float32: 4, torch.bfloat16: 2}
"""Bytes of the numbers that compiled code reads."""

WORTH = 2**18
"""Numbers in an array from which a second thread pays: sharing one costs about 30 us."""

LONG = 4096
"""Weights in a row from which on its median is found faster by the compiled way."""


def plain(x: Tensor) -> Tensor:
    """Contiguous memory that compiled code reads, the tensor itself where it is that."""
    return (x if x.dtype in SIZES else x.float()).contiguous()


@functools.cache
def compiled() -> Any:
    """The compiled functions by name; the import of numba waits until one is called."""
    from types import SimpleNamespace

    from bitexp.kernels.cpu import columns, norm_quant, step
    from bitexp.kernels.cpu.dots import supported

    names = (
        "dequantize_rows", "norm_backward", "normalize", "row_means", "sign_rows", "round_rows",
        "codes_by_means",
    )  # fmt: skip
    functions = {name: getattr(norm_quant, name)() for name in names}
    functions |= {"column_sums": columns.column_sums()}
    if multiplies_bytes():
        functions |= {"pack": step.pack(), "forward": step.forward(supported()[0])}
    return SimpleNamespace(**functions, packed_bytes=step.packed_bytes, wide=columns.WIDE)


@functools.cache
def multiplies_bytes() -> bool:
    """Whether the instructions that numba compiles for multiply whole bytes, as weights are laid out."""
    from bitexp.kernels.cpu.dots import ISAS, supported

    return ISAS[supported()[0]].wide


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
        return linear and x.is_cpu and x.numel() > 0 and x.shape[-1] > 1 and multiplies_bytes()

    def forward(
        self, x: Tensor, bias: Tensor | None, w_codes: Tensor, w_scale: Tensor, call: Call
    ) -> tuple[Tensor, *Saved]:
        spec, code = call.spec, compiled()
        assert spec.absmax is not None
        (outputs, inputs), norm = w_codes.shape, NORMS[spec.norm]
        lead, tokens, source = x.shape[:-1], x.numel() // inputs, plain(x)
        packed, w_codes = (
            torch.empty(code.packed_bytes(outputs, inputs), dtype=torch.uint8),
            w_codes.contiguous(),
        )
        code.pack(w_codes.data_ptr(), packed.data_ptr(), outputs, inputs)
        y = torch.empty(*lead, outputs, dtype=call.dtype if call.dtype in SIZES else F32)
        codes = torch.empty(*lead, inputs, dtype=torch.int8)
        scale = torch.empty(*lead, 1, dtype=F32)
        rstd = torch.empty_like(scale) if norm else None
        mean = torch.empty_like(scale) if norm == NORMS["layer"] else None
        factors, offsets = w_scale.contiguous(), None if bias is None else bias.contiguous()
        given = (
            source.data_ptr(), SIZES[source.dtype], packed.data_ptr(), factors.data_ptr(), factors.numel(),
            address(offsets), int(spec.bias == "scaled"), norm, spec.absmax, codes.data_ptr(),
            scale.data_ptr(), address(mean), address(rstd), y.data_ptr(), SIZES[y.dtype], inputs, outputs,
        )  # fmt: skip
        alive = source, packed, factors, offsets, codes, scale, mean, rstd, y
        share(code.forward, given, tokens, tokens * max(inputs, outputs), alive)
        return y if y.dtype is call.dtype else y.to(call.dtype), codes, scale, mean, rstd

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
        code, (codes, scale, mean, rstd) = compiled(), saved
        assert scale is not None
        need_x, need_w, need_b = needed
        (outputs, inputs), dtype, scaled = w_codes.shape, call.grad_dtype, call.spec.bias == "scaled"
        of_grad, tokens = rows(grad), codes.numel() // inputs
        step = min(tokens, width(inputs, outputs))
        source = None if x is None else plain(x)
        of_x = dtype if source is None else source.dtype
        grad_x = grad_w = grad_b = weights = None
        if need_x:
            weights = torch.empty(outputs, inputs, dtype=dtype)
            grad_x = torch.empty(*codes.shape, dtype=of_x)
            w_codes, factors = w_codes.contiguous(), w_scale.contiguous()
            of_weights = factors.data_ptr(), factors.numel(), weights.data_ptr(), SIZES[dtype], inputs
            code.dequantize_rows(w_codes.data_ptr(), *of_weights, 0, outputs)
        room = torch.empty(step, inputs, dtype=dtype)
        for start in range(0, tokens, step):
            g, some, count = of_grad, room, min(step, tokens - start)
            if count < tokens:
                g, some = g[start : start + count], room[:count]
            if need_b:
                if scaled:
                    of_bias = (g.float() * (rows(scale)[start : start + count] * w_scale)).sum(0)
                else:
                    of_bias = token_sums(g)
                grad_b = of_bias if grad_b is None else grad_b.add_(of_bias)
            if g.dtype is not dtype or not g.is_contiguous():
                g = g.to(dtype).contiguous()
            if need_w:
                of_codes = codes.data_ptr() + inputs * start, address(scale, start), count
                of_room = room.data_ptr(), SIZES[dtype], inputs
                share(code.dequantize_rows, (*of_codes, *of_room), count, inputs * count, saved, room)
                grad_w = add_product(grad_w, g, some)
            if grad_x is not None and weights is not None:
                if source is None:
                    torch.mm(g, weights, out=rows(grad_x)[start : start + count])
                    continue
                torch.mm(g, weights, out=some)
                of_norm = (
                    some.data_ptr(), SIZES[dtype], *part_of(source, start, inputs),
                    address(mean, start), address(rstd, start), part_of(grad_x, start, inputs)[0], inputs,
                )  # fmt: skip
                share(code.norm_backward, of_norm, count, inputs * count, room, source, saved, grad_x)
        return grad_x, grad_w, grad_b

    def normalize(self, x: Tensor, norm: Norm, dim: int) -> Normed:
        if norm == "none" or dim != -1 or not (compilable(x) and x.is_contiguous() and x.numel()):
            return super().normalize(x, norm, dim)
        y, features, centered = torch.empty_like(x), x.shape[-1], norm == "layer"
        rstd = torch.empty(*x.shape[:-1], 1, dtype=F32)
        mean = torch.empty_like(rstd) if centered else None
        given = x.data_ptr(), y.data_ptr(), address(mean), address(rstd), features, int(centered)
        share(compiled().normalize, given, x.numel() // features, x.numel(), x, y, rstd, mean)
        return y, mean, rstd

    def abs_median(self, rows: Tensor) -> Tensor:
        if not compilable(rows) or rows.shape[-1] < LONG:
            return super().abs_median(rows)
        from bitexp.kernels.cpu.median import medians

        rows, out = rows.contiguous(), torch.empty(len(rows), 1, dtype=F32)
        medians()(rows.data_ptr(), out.data_ptr(), rows.shape[1], len(rows))
        return out

    def means(self, rows: Tensor) -> Tensor:
        return row_means(rows, 0) if compilable(rows) else super().means(rows)

    def abs_means(self, rows: Tensor) -> Tensor:
        return row_means(rows, 1) if compilable(rows) else super().abs_means(rows)

    def signs(self, rows: Tensor, middle: Tensor) -> Tensor:
        if not (compilable(rows) and compilable(middle)):
            return super().signs(rows, middle)
        rows, middle = rows.contiguous(), middle.contiguous()
        codes, (count, features) = torch.empty_like(rows, dtype=torch.int8), rows.shape
        compiled().sign_rows(rows.data_ptr(), middle.data_ptr(), codes.data_ptr(), features, count)
        return codes

    def rounded(self, rows: Tensor, scale: Tensor, levels: Levels) -> Tensor:
        if not (compilable(rows) and compilable(scale)):
            return super().rounded(rows, scale, levels)
        rows, scale = rows.contiguous(), scale.contiguous()
        codes, (count, features) = torch.empty_like(rows, dtype=torch.int8), rows.shape
        bounds = levels.low, levels.high
        compiled().round_rows(rows.data_ptr(), scale.data_ptr(), *bounds, codes.data_ptr(), features, count)
        return codes

    def rounded_by_means(self, weight: Tensor, shape: torch.Size, levels: Levels) -> tuple[Tensor, Tensor]:
        if not legible(weight):
            return super().rounded_by_means(weight, shape, levels)
        return codes_and_scales(compiled().codes_by_means, weight, shape, 0, levels.low, levels.high)

    def rounded_by_medians(self, weight: Tensor, shape: torch.Size, levels: Levels) -> tuple[Tensor, Tensor]:
        if not legible(weight) or weight.numel() < LONG * shape.numel():
            return super().rounded_by_medians(weight, shape, levels)
        from bitexp.kernels.cpu.median import codes_by_medians

        return codes_and_scales(codes_by_medians(), weight, shape, levels.low, levels.high)

    def signs_by_means(self, weight: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        if not legible(weight):
            return super().signs_by_means(weight, shape)
        return codes_and_scales(compiled().codes_by_means, weight, shape, 1, -1, 1)


def token_sums(x: Tensor) -> Tensor:
    """`[tokens, features] -> [features]` in fp32, with the bits of `x.float().sum(0)`."""
    features, code = x.shape[1], compiled()
    alone = x.numel() < WORTH or torch.get_num_threads() == 1
    fits = features % code.wide == 0 and x.dtype in SIZES and x.is_contiguous()
    if not (alone and fits and adds_as_torch()):
        return x.float().sum(0)
    out = torch.empty(features, dtype=F32)
    code.column_sums(x.data_ptr(), SIZES[x.dtype], out.data_ptr(), features, len(x))
    return out


@functools.cache
def adds_as_torch() -> bool:
    """Whether this torch adds tokens up in the order of `column_sums`, as 2.13 does."""
    x = torch.linspace(0, 1e4, 600 * 64, dtype=F32, device="cpu").sin().view(600, 64)
    out = torch.empty(64, dtype=F32, device="cpu")
    compiled().column_sums(x.data_ptr(), 4, out.data_ptr(), 64, 600)
    return torch.equal(out, x.sum(0))


def address(x: Tensor | None, start: int = 0) -> int:
    """Of a tensor's memory, or of a number in it (fp32); 0 for none."""
    return 0 if x is None else x.data_ptr() + 4 * start


def part_of(x: Tensor, token: int, features: int) -> tuple[int, int]:
    """Where the numbers of a token begin, and the size of one."""
    size = SIZES[x.dtype]
    return x.data_ptr() + size * features * token, size


def row_means(rows: Tensor, magnitudes: int) -> Tensor:
    """`[rows, weights] -> [rows, 1]`: the means of W, or of |W|."""
    rows, (count, features) = rows.contiguous(), rows.shape
    out = torch.empty(count, 1, dtype=F32)
    compiled().row_means(rows.data_ptr(), out.data_ptr(), magnitudes, features, count)
    return out


def codes_and_scales(
    function: Callable[..., None], weight: Tensor, shape: torch.Size, *choices: int
) -> tuple[Tensor, Tensor]:
    """The codes of weights and their scales of a shape, by a compiled function that makes those of rows."""
    weight, count = weight.contiguous(), shape.numel()
    codes, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(shape, dtype=F32)
    to = codes.data_ptr(), scale.data_ptr()
    function(weight.data_ptr(), *choices, *to, weight.numel() // count, count)
    return codes, scale


def compilable(x: Tensor) -> bool:
    """Whether compiled code takes the tensor: fp32 numbers in main memory."""
    return x.dtype == F32 and x.is_cpu and readable(x)


def legible(weight: Tensor) -> bool:
    """The same of latent weights, whatever graph they have: `detach` would take as long as codes."""
    return weight.dtype is F32 and weight.is_cpu and in_memory(weight) and not followed()


def add_product(total: Tensor | None, grad: Tensor, inputs: Tensor) -> Tensor:
    """Adds `grad^T @ inputs`, first to nothing; the total is fp32, whatever the factors are."""
    if total is None:
        product = torch.mm(grad.t(), inputs)
        return product if product.dtype is F32 else product.float()
    if grad.dtype is total.dtype:
        return total.addmm_(grad.t(), inputs)
    return total.add_(torch.mm(grad.t(), inputs))
