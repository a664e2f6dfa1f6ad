"""The int8 kernel: torch's integer matrix product on processors with VNNI instructions.

Linear layers multiply int8 codes and add in int32; convolutions and float activations go the way of
`reference`. The sums are the same integers, so the bits are too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitexp.kernels.reference import Reference
from bitexp.kernels.registry import KERNELS
from bitexp.quant.backend import Backend, float_product
from bitexp.quant.modes import batched, has_vnni, int_mm
from bitexp.quant.spec import LayerSpec


def int8_product(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """Linear product of int8 codes by `int_mm`; anything else by `float_product`."""
    if spec.conv is not None or x.dtype != torch.int8 or unfit(x, weight):
        return float_product(x, weight, spec)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    sums = int_mm(rows, weight.t()).reshape(*x.shape[:-1], weight.shape[0])
    return sums.float()  # last, so that it is no view: autograd forbids in-place activations on one


def unfit(x: Tensor, weight: Tensor) -> bool:
    """Whether `int_mm` fails: on nothing, under vmap, and on single inputs (2.13 misreads them)."""
    return x.numel() == 0 or x.shape[-1] == 1 or batched(x) or batched(weight)


class Int8Backend(Backend):
    """Training by torch's operators, the sums of linear layers in integers."""

    def product(self, x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        return int8_product(x, weight, spec)


class Int8(Reference):
    """Exact integer products on the CPU, about four times as fast as fp32 ones with VNNI."""

    backend = Int8Backend()

    def unavailable(self, device: str) -> str | None:
        if device != "cpu":
            return f"it runs on the CPU, not on {device}"
        if not has_vnni():
            return "this processor has no VNNI instructions"
        return None


KERNELS.register("int8")(Int8())
