"""A ternary linear layer on a GPU: ours, torch's, and those of the peers that are installed.

Each candidate takes the codes and the step, and gives a function of bf16 activations `[M, K]` that answers
in bf16. What of the layer it leaves out stands in its name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.kernels import KERNELS
from bitexp.quant.absmax import absmax_codes
from bitexp.quant.modes import int_mm as torch_int_mm

Layer = Callable[[Tensor], Tensor]
Make = Callable[[Tensor, Tensor], Layer]

BASE = "torch bf16"


def packed(codes: Tensor, scale: Tensor) -> Layer:
    """The kernel `triton`: codes of activations, packed product, scales."""
    kernel = KERNELS.get("triton")
    prepared = kernel.prepare(codes, scale)
    return lambda x: kernel.forward(x, prepared, norm="none", dtype=torch.bfloat16)


def packed_with_norm(codes: Tensor, scale: Tensor) -> Layer:
    """The same with an RMS norm before, in the same launches."""
    kernel = KERNELS.get("triton")
    prepared = kernel.prepare(codes, scale)
    return lambda x: kernel.forward(x, prepared, norm="rms", dtype=torch.bfloat16)


def int8_codes(codes: Tensor, scale: Tensor) -> Layer:
    """The training forward: the same with int8 codes of the weights."""
    from bitexp.kernels.gpu.int8 import int8_gemm
    from bitexp.kernels.gpu.quantize import quantize

    def run(x: Tensor) -> Tensor:
        q = quantize(x, 127, x.shape[1])
        return int8_gemm(q.codes, codes, q.scale, scale, dtype=torch.bfloat16)

    return run


def bf16(codes: Tensor, scale: Tensor) -> Layer:
    """The ordinary layer."""
    weight = (codes * scale).to(torch.bfloat16)
    return lambda x: F.linear(x, weight)


def int_mm(codes: Tensor, scale: Tensor) -> Layer:
    """torch's integer product, on codes that are made once."""
    once: dict[int, tuple[Tensor, Tensor]] = {}

    def run(x: Tensor) -> Tensor:
        if id(x) not in once:
            once[id(x)] = absmax_codes(x.float(), 127, (-1,))
        x_codes, x_scale = once[id(x)]
        run.finish = lambda y: y * (x_scale * scale)  # type: ignore[attr-defined]
        return torch_int_mm(x_codes, codes.t())

    return run


def gemlite(codes: Tensor, scale: Tensor) -> Layer:
    """gemlite's `A8W158_INT_dynamic`."""
    make = import_module("gemlite.helper").A8W158_INT_dynamic(str(codes.device), torch.bfloat16)
    layer: Layer = make.from_weights(codes.bfloat16(), scale)
    return layer


def humming(codes: Tensor, scale: Tensor) -> Layer:
    """humming-kernels: int2 weights, int8 activations."""
    outputs, inputs = codes.shape
    layer = (
        import_module("humming.layer")
        .HummingLayer(
            shape_n=outputs,
            shape_k=inputs,
            weight_config={"dtype": "int2"},
            input_config={"dtype": "int8"},
            torch_dtype=torch.bfloat16,
        )
        .to(codes.device)
    )
    layer.load_from_unquantized((codes * scale).bfloat16())
    layer.transform()
    made: Layer = layer
    return made


def torchao(codes: Tensor, scale: Tensor) -> Layer:
    """torchao's int8 product with scales, as its BitNet training has it, on codes that are made once."""
    product = import_module("torchao.prototype.quantized_training.int8_mm").scaled_int8_mm
    once: dict[int, tuple[Tensor, Tensor]] = {}
    step = scale.reshape(1).bfloat16()

    def run(x: Tensor) -> Tensor:
        if id(x) not in once:
            x_codes, x_scale = absmax_codes(x.float(), 127, (-1,))
            once[id(x)] = x_codes, x_scale.flatten().bfloat16()
        x_codes, x_scale = once[id(x)]
        y: Tensor = product(x_codes, codes.t(), x_scale, step)
        return y

    return run


CANDIDATES: dict[str, tuple[Make, float, str | None]] = {
    BASE: (bf16, 2, None),
    "triton": (packed, 0.25, None),
    "triton, rms norm": (packed_with_norm, 0.25, None),
    "triton, int8 weights": (int8_codes, 1, None),
    "torch _int_mm, sums only": (int_mm, 1, None),
    "gemlite": (gemlite, 0.25, "gemlite"),
    "humming": (humming, 0.25, "humming"),
    "torchao, codes given": (torchao, 1, "torchao"),
}
"""By name: what makes it, bytes per weight, and the module that must be installed."""


def check_gpu() -> None:
    """Raises `UserError` where there is no GPU that kernel `triton` runs on."""
    if reason := KERNELS.get("triton").unavailable("cuda"):
        raise UserError(f"this benchmark needs a GPU: {reason}")
