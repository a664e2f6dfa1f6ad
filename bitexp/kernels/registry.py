"""Kernels by name: where packed codes meet activations."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from bitexp.common.errors import Unusable
from bitexp.common.registry import Registry
from bitexp.quant.backend import FusedLinear, Product
from bitexp.quant.spec import ConvArgs


class Kernel(Protocol):
    """One implementation of a frozen layer's product, activation quantization included.

    `prepare` turns codes and steps into the kernel's own layout, once; what it returns goes into
    `linear` and `conv2d`. Every kernel gives the bits of `reference` in fp32.
    """

    product: Product
    """The sum over codes that the training forward uses with this kernel."""

    fused: FusedLinear | None
    """A whole training step of a linear layer, where this kernel has one."""

    def unavailable(self, device: str) -> str | None:
        """Why it cannot run here on a device type (`cpu`, `cuda`), or None."""

    def prepare(self, codes: Tensor, scale: Tensor) -> Any:
        """int8 codes `[out, ...]`, steps `[]`, `[out]` or `[out, groups]` -> prepared weights."""

    def linear(
        self, x: Tensor, prepared: Any, bias: Tensor | None, act_qmax: int, scaled_bias: bool
    ) -> Tensor:
        """`[..., in]` floats (normed) -> `[..., out]`; `act_qmax` 0 leaves the activations floats."""

    def conv2d(
        self,
        x: Tensor,
        prepared: Any,
        bias: Tensor | None,
        act_qmax: int,
        scaled_bias: bool,
        conv: ConvArgs,
    ) -> Tensor:
        """`[B, in, H, W]` floats (normed) -> `[B, out, H', W']`."""


KERNELS: Registry[Kernel] = Registry("kernel")

PREFERENCE = ["triton", "cpu", "int8", "reference"]
"""The order in which `auto` tries them: the fastest first."""


def choose_kernel(name: str, device: str) -> tuple[Kernel, str, str]:
    """The kernel for a name, `auto` included, on a device type.

    Returns:
        the kernel, its own name, and the reason for the choice.

    Raises:
        ValueError: an unknown name, or a kernel that cannot run here, with the reason.
    """
    if name != "auto":
        kernel: Kernel = KERNELS.get(name)
        if reason := kernel.unavailable(device):
            raise Unusable(f"kernel={name} cannot run here: {reason}")
        return kernel, name, "asked for"
    passed: list[str] = []
    for candidate in PREFERENCE:
        kernel = KERNELS.get(candidate)
        reason = kernel.unavailable(device)
        if reason is None:
            return kernel, candidate, "; ".join(["auto: the fastest that runs here", *passed])
        passed.append(f"{candidate}: {reason}")
    raise Unusable(f"no kernel runs here: {'; '.join(passed)}")
