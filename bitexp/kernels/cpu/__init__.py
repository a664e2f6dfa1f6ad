"""The CPU kernel: packed weights are multiplied as they lie, activation codes are made in the same call.

Linear layers with codes of up to four bits and a scale per tensor or output run compiled (`layer.py`), in
the layout of `layout.py`, with the fastest instructions of the processor (`dots.py`). Convolutions, scales
per group, wider codes, float activations and activation codes of others go the way of `int8`; but signs times
signs are counted (`popcount.py`).

Where weights are read from memory, Python's own data have left the cache, and a few lines take as long as a
tenth of a small layer. So few lines are on the way of a token, and names of torch are looked up once.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, float32, get_num_threads

from bitexp.kernels.cpu import layout, memory, threads
from bitexp.kernels.cpu.jit import missing
from bitexp.kernels.cpu.threads import in_threads, scratch
from bitexp.kernels.cpu.training import CpuBackend
from bitexp.kernels.int8 import Int8
from bitexp.kernels.reference import PLAIN, Reference
from bitexp.kernels.registry import KERNELS
from bitexp.quant.backend import Backend
from bitexp.quant.levels import BINARY
from bitexp.quant.modes import followed, has_vnni, in_memory, readable
from bitexp.quant.product import Quantized, scaled_product
from bitexp.quant.spec import EXACT, LayerSpec, Norm


class Packed:
    """The weights of a linear layer in the layout P64.

    Args:
        weights: uint8 `[streams, blocks, 256]`.
        scale: of the codes, `[]` or `[outputs]`.
        bits, outputs, inputs: of the codes.
        isa: the instruction set that multiplies them.
    """

    def __init__(
        self, weights: Tensor, scale: Tensor, bits: int, outputs: int, inputs: int, isa: str
    ) -> None:
        from bitexp.kernels.cpu.layer import layer, scratch_bytes

        self.weights, self.scale, self.bits, self.isa = memory.copied(weights), scale, bits, isa
        self.outputs, self.inputs = outputs, inputs
        scales = F.pad(scale.detach().float().expand(outputs), (0, -outputs % layout.STREAM))
        self.scales = torch.cat([scales, scales.new_full((layout.STREAM,), -0.0)])
        where = self.weights.data_ptr(), self.scales.data_ptr()
        self.run = functools.partial(layer(isa, bits), *where, inputs, outputs)
        self.scratch, self.streams = scratch_bytes(inputs), len(weights)
        self.worth = -(-threads.WORTH // (outputs * inputs))  # tokens from which on threads are
        self._integers: Quantized | None = None
        self._signs: Quantized | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # compiled functions are not copied with it
        return Packed, (self.weights.clone(), self.scale, self.bits, self.outputs, self.inputs, self.isa)

    @property
    def integers(self) -> Quantized:
        """As int8 codes, kept from the first call on that needs them: unpacking is slower than a product."""
        if self._integers is None:
            integers = Quantized(self.codes(), self.scale)
            if followed():  # a compiler's, or a mode's: no other call may have it
                return integers
            self._integers = integers
        return self._integers

    @property
    def signs(self) -> Quantized:
        """Signs as bits of whole words, in place of the codes; kept likewise. Nothing may follow this."""
        from bitexp.kernels.cpu.popcount import words_of

        if self._signs is None:
            self._signs = Quantized(words_of(self.codes()), self.scale)
        return self._signs

    def codes(self) -> Tensor:
        """The int8 codes `[outputs, inputs]`."""
        return layout.unpack(self.weights, self.bits, self.outputs, self.inputs)

    def forward(
        self, x: Tensor, bias: Tensor | None, absmax: int, scaled_bias: bool, norm: int = 0
    ) -> Tensor:
        """`[..., inputs]` floats -> `[..., outputs]`; `absmax` is the code of a token's largest value.

        `norm` is a number of `bitexp.kernels.cpu.layout.NORMS`.
        """
        *lead, inputs = x.shape
        x = x.contiguous()
        y = x.new_empty(*lead, self.outputs)  # not as one tuple, which takes torch half as long again
        address = 0
        if bias is not None:
            bias = bias.contiguous()  # alive by this name while its address is used
            address = bias.data_ptr()
        given = absmax, address, scaled_bias, norm, x.data_ptr(), y.data_ptr()
        tokens = x.numel() // inputs
        if tokens < self.worth or get_num_threads() == 1:
            self.run(*given, scratch(self.scratch), 0, tokens, 0, self.streams)
        else:
            in_threads(self.run, given, self.scratch, tokens, self.streams, self, x, y, bias)
        return y


class Signs(Backend):
    """Multiplies signs by signs."""

    def product(self, x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        from bitexp.kernels.cpu.popcount import sign_product

        return sign_product(x, weight)


SIGNS = Signs()


class Cpu(Reference):
    """Packed products compiled by numba.

    Args:
        isa: a name in `bitexp.kernels.cpu.dots.ISAS`; None for the fastest that the processor has.
    """

    def __init__(self, isa: str | None = None) -> None:
        self.isa = isa
        vnni = has_vnni()
        self.other: Reference = Int8() if vnni else Reference()
        self.backend = CpuBackend() if vnni else self.other.backend

    def unavailable(self, device: str) -> str | None:
        if device != "cpu":
            return f"it runs on the CPU, not on {device}"
        return missing()

    def prepare(self, codes: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
        if codes.dim() != 2 or scale.dim() == 2 or codes.device.type != "cpu" or not codes.numel():
            return self.other.prepare(codes, scale, shift)
        outputs, inputs = codes.shape
        if scale.dim() and scale.shape != (outputs,):
            raise ValueError(f"a scale of shape {list(scale.shape)} does not fit {outputs} outputs")
        coded = layout.digits_of(codes)
        if coded is None or shift is not None or inputs * 127 * int(codes.abs().max()) > EXACT:
            return self.other.prepare(codes, scale, shift)
        from bitexp.kernels.cpu.dots import supported

        bits, digits = coded
        weights = layout.pack(digits, bits)
        return Packed(weights, scale, bits, outputs, inputs, self.isa or supported()[0])

    def takes_norm(self, prepared: Any, spec: LayerSpec) -> bool:
        return isinstance(prepared, Packed) and spec.absmax is not None

    def forward(
        self,
        x: Tensor,
        prepared: Any,
        bias: Tensor | None = None,
        spec: LayerSpec = PLAIN,
        norm: Norm = "none",
    ) -> Tensor:
        if not isinstance(prepared, Packed):
            return self.other.forward(x, prepared, bias, spec, norm)
        if (x.shape or [0])[-1] != prepared.inputs:
            raise ValueError(f"inputs of shape {list(x.shape)} do not end in {prepared.inputs} features")
        if bias is not None and bias.shape != (prepared.outputs,):
            raise ValueError(f"a bias of shape {list(bias.shape)} does not fit {prepared.outputs} outputs")
        absmax = spec.absmax
        if (
            absmax is not None
            and (x.dtype is float32 and x.is_cpu and readable(x))
            and (bias is None or (bias.dtype is float32 and bias.is_cpu and readable(bias)))
        ):
            return prepared.forward(x, bias, absmax, spec.bias == "scaled", layout.NORMS[norm])
        return self.other.forward(x, self.weights(prepared), bias, spec, norm)

    def forward_codes(
        self,
        codes: Tensor,
        scale: Tensor,
        prepared: Any,
        bias: Tensor | None = None,
        spec: LayerSpec = PLAIN,
    ) -> Tensor:
        levels = None if spec.activations is None else spec.activations.levels
        signs = isinstance(prepared, Packed) and prepared.bits == 1 and levels == BINARY
        if signs and codes.is_cpu and in_memory(codes) and readable(codes):
            return scaled_product(codes, scale, prepared.signs, bias, spec, SIGNS)
        return self.other.forward_codes(codes, scale, self.weights(prepared), bias, spec)

    def weights(self, prepared: Any) -> Quantized:
        if isinstance(prepared, Packed):
            return prepared.integers
        return super().weights(prepared)


KERNELS.register("cpu")(Cpu())
