"""Kernels by name: where packed codes meet activations."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from bitexp.common.errors import Unusable
from bitexp.common.registry import Registry
from bitexp.quant.backend import Backend
from bitexp.quant.spec import LayerSpec, Norm


class Kernel(Protocol):
    """One implementation of a frozen layer's product, for linear layers and convolutions.

    `prepare` turns codes, scale and shift into the kernel's own layout, once; what it returns goes into
    `forward` and `forward_codes`. Every kernel gives the bits of `reference` in fp32.
    """

    @property
    def backend(self) -> Backend:
        """What a layer in training holds of this kernel."""

    def unavailable(self, device: str) -> str | None:
        """Why it cannot run here on a device type (`cpu`, `cuda`), or None."""

    def prepare(self, codes: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
        """int8 codes `[out, ...]`, scale `[]`, `[out]` or `[out, groups]` -> prepared weights."""

    def takes_norm(self, prepared: Any, spec: LayerSpec) -> bool:
        """Whether `forward` takes the norm in the same call, with the bits it has when taken before."""

    def forward(
        self,
        x: Tensor,
        prepared: Any,
        bias: Tensor | None = None,
        spec: LayerSpec = ...,
        norm: Norm = "none",
    ) -> Tensor:
        """fp32 `[..., in]` or `[B, in, H, W]`, after a norm if any -> `[..., out]` or `[B, out, H', W']`.

        It makes the activation codes itself where `spec.activations` are by absmax; without activations the
        input stays floats.

        Raises:
            ValueError: only their quantizer can make the codes of these activations.
        """

    def forward_codes(
        self,
        codes: Tensor,
        scale: Tensor,
        prepared: Any,
        bias: Tensor | None = None,
        spec: LayerSpec = ...,
    ) -> Tensor:
        """The same from int8 activation codes and their scale, which has size 1 along what shares one."""


KERNELS: Registry[Kernel] = Registry("kernel")

PREFERENCE = ["triton", "cpu", "int8", "reference"]
"""The order in which `auto` tries them: the fastest first."""


def as_kernel(kernel: Kernel | str) -> Kernel:
    """A kernel itself, or by its name the one for the CPU. Raises what `choose_kernel` raises."""
    return choose_kernel(kernel, "cpu")[0] if isinstance(kernel, str) else kernel


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
