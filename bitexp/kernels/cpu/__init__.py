"""The CPU kernel: packed weights are multiplied as they lie, activation codes are made in the same call.

Linear layers with codes of up to four bits and a step per tensor or per output run compiled (`layer.py`), in
the layout of `layout.py`, with the fastest instructions of the processor (`dots.py`). Convolutions, steps per
group, wider codes and float activations go the way of `int8`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.kernels.cpu import layout, memory
from bitexp.kernels.cpu.jit import missing
from bitexp.kernels.cpu.threads import in_threads
from bitexp.kernels.cpu.training import CpuTraining
from bitexp.kernels.int8 import Int8
from bitexp.kernels.reference import Reference
from bitexp.kernels.registry import KERNELS
from bitexp.quant.product import EXACT, ConvArgs


class Packed:
    """The weights of a linear layer in the layout P64.

    Args:
        weights: uint8 `[streams, blocks, 256]`.
        scale: the steps, `[]` or `[outputs]`.
        bits, outputs, inputs: of the codes.
        isa: the instruction set that multiplies them.
    """

    def __init__(
        self, weights: Tensor, scale: Tensor, bits: int, outputs: int, inputs: int, isa: str
    ) -> None:
        from bitexp.kernels.cpu.layer import layer, scratch_bytes

        self.weights, self.scale, self.bits, self.isa = memory.copied(weights), scale, bits, isa
        self.outputs, self.inputs = outputs, inputs
        steps = F.pad(scale.detach().float().expand(outputs), (0, -outputs % layout.STREAM))
        self.steps = torch.cat([steps, torch.full((layout.STREAM,), -0.0)])
        self.run, self.scratch = layer(isa, bits), scratch_bytes
        self.given = self.weights.data_ptr(), self.steps.data_ptr(), inputs, outputs
        self.streams, self.size = len(weights), outputs * inputs

    def __reduce__(self) -> tuple[Any, ...]:  # compiled functions are not copied with it
        return Packed, (self.weights.clone(), self.scale, self.bits, self.outputs, self.inputs, self.isa)

    def codes(self) -> Tensor:
        """The int8 codes `[outputs, inputs]`."""
        return layout.unpack(self.weights, self.bits, self.outputs, self.inputs)

    def linear(self, x: Tensor, bias: Tensor | None, act_qmax: int, scaled_bias: bool) -> Tensor:
        """`[..., inputs]` floats -> `[..., outputs]`."""
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self.outputs))
        tokens = x.numel() // self.inputs
        if bias is not None:
            bias = bias.contiguous()  # alive by this name while its address is used
        address = 0 if bias is None else bias.data_ptr()
        given = (*self.given, act_qmax, address, scaled_bias, x.data_ptr(), y.data_ptr())
        in_threads(self.run, given, self.scratch(self.inputs, tokens), tokens, self.streams, self.size)
        return y


class Cpu(Reference):
    """Packed products compiled by numba.

    Args:
        isa: a name in `bitexp.kernels.cpu.dots.ISAS`; None for the fastest that the processor has.
    """

    def __init__(self, isa: str | None = None) -> None:
        self.isa = isa
        self.other: Reference = Int8() if torch.cpu._is_vnni_supported() else Reference()
        self.product = self.other.product
        self.fused = CpuTraining() if torch.cpu._is_vnni_supported() else None

    def unavailable(self, device: str) -> str | None:
        if device != "cpu":
            return f"it runs on the CPU, not on {device}"
        return missing()

    def prepare(self, codes: Tensor, scale: Tensor) -> Any:
        if codes.dim() != 2 or scale.dim() == 2 or codes.device.type != "cpu" or not codes.numel():
            return self.other.prepare(codes, scale)
        outputs, inputs = codes.shape
        if scale.dim() and scale.shape != (outputs,):
            raise ValueError(f"{list(scale.shape)} steps do not fit {outputs} outputs")
        found = layout.digits_of(codes)
        if found is None or inputs * 127 * int(codes.abs().max()) > EXACT:
            return self.other.prepare(codes, scale)
        from bitexp.kernels.cpu.dots import supported

        bits, digits = found
        weights = layout.pack(digits, bits)
        return Packed(weights, scale, bits, outputs, inputs, self.isa or supported()[0])

    def linear(
        self, x: Tensor, prepared: Any, bias: Tensor | None, act_qmax: int, scaled_bias: bool
    ) -> Tensor:
        if not isinstance(prepared, Packed):
            return self.other.linear(x, prepared, bias, act_qmax, scaled_bias)
        if x.dim() == 0 or x.shape[-1] != prepared.inputs:
            raise ValueError(f"inputs of shape {list(x.shape)} do not end in {prepared.inputs} features")
        if bias is not None and bias.shape != (prepared.outputs,):
            raise ValueError(f"a bias of shape {list(bias.shape)} does not fit {prepared.outputs} outputs")
        if act_qmax and runs_by_address(x) and (bias is None or runs_by_address(bias)):
            return prepared.linear(x, bias, act_qmax, scaled_bias)
        codes = prepared.codes(), prepared.scale
        return self.other.linear(x, codes, bias, act_qmax, scaled_bias)

    def conv2d(
        self,
        x: Tensor,
        prepared: Any,
        bias: Tensor | None,
        act_qmax: int,
        scaled_bias: bool,
        conv: ConvArgs,
    ) -> Tensor:
        return self.other.conv2d(x, prepared, bias, act_qmax, scaled_bias, conv)


def runs_by_address(x: Tensor) -> bool:
    """Whether a tensor may be read past torch: fp32 in memory, no gradient, transform or compiler around."""
    return not (
        x.dtype != torch.float32
        or not x.is_cpu
        or (x.requires_grad and torch.is_grad_enabled())
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    )


KERNELS.register("cpu")(Cpu())
