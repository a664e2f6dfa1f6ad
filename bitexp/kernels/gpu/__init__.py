"""The kernel `triton`: packed and int8 products on GPUs, written in Triton.

Weights of {-1, 1} and {-1, 0, 1, 2} in linear layers are multiplied packed; wider codes and convolutions
as int8 codes, scales per group by one int8 product each; float activations the way of `reference`.
Triton is imported where a kernel is first used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bitexp.kernels.gpu.layout import Packed, bits_for, pack, unpack
from bitexp.kernels.gpu.product import launchable
from bitexp.kernels.gpu.training import GpuBackend
from bitexp.kernels.reference import PLAIN, Reference
from bitexp.kernels.registry import KERNELS
from bitexp.quant.backend import Backend
from bitexp.quant.modes import readable
from bitexp.quant.norms import normalize
from bitexp.quant.product import Quantized
from bitexp.quant.spec import LayerSpec, Norm

CAPABILITY = (8, 0)
"""The first with int8 tensor cores that Triton compiles for (Ampere)."""


class Triton(Reference):
    """Exact integer products on GPUs since Ampere."""

    backend: Backend = GpuBackend()

    def unavailable(self, device: str) -> str | None:
        if device != "cuda":
            return f"it runs on GPUs, not on {device}"
        if find_spec("triton") is None:
            return "the package triton is not installed"
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        found = torch.cuda.get_device_capability()
        if torch.version.hip is None and found < CAPABILITY:
            return (
                f"{torch.cuda.get_device_name()} has compute capability {found[0]}.{found[1]}; it needs 8.0"
            )
        return None

    def prepare(self, codes: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
        matrix = (
            codes.dim() == 2 and codes.numel() and not codes.is_meta and scale.dim() < 2 and shift is None
        )
        if matrix and (bits := bits_for(codes)):
            return pack(codes, scale, bits)
        return Quantized(codes, scale, shift)

    def forward(
        self,
        x: Tensor,
        prepared: Any,
        bias: Tensor | None = None,
        spec: LayerSpec = PLAIN,
        norm: Norm = "none",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """As in the protocol; with `norm` x is not normed yet, and the norm is taken in the same launch."""
        if isinstance(prepared, Packed) and spec.absmax is not None and launchable(x):
            # torch.compile knows kernels of Triton; whatever else follows torch does not
            if torch.compiler.is_compiling() or (readable(x) and (bias is None or readable(bias))):
                from bitexp.kernels.gpu.linear import packed_linear

                return packed_linear(x, prepared, bias, spec.absmax, spec.bias == "scaled", norm, dtype)
            x = normalize(x.float(), norm, -1)[0]
        elif norm != "none":
            raise ValueError(f"norm={norm} is fused only on a GPU, with packed weights and int8 activations")
        return super().forward(x, prepared, bias, spec).to(dtype)

    def weights(self, prepared: Any) -> Quantized:
        if isinstance(prepared, Packed):
            return Quantized(unpack(prepared), prepared.scale)
        return super().weights(prepared)


KERNELS.register("triton")(Triton())
