"""Where packed codes meet activations: one interface, several kernels, chosen by `kernel=`."""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.kernels.registry import KERNELS, Kernel, as_kernel, choose_kernel

load_modules(__name__, __path__)

__all__ = ["KERNELS", "Kernel", "as_kernel", "choose_kernel"]
