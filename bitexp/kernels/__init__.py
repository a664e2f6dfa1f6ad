"""Where packed codes meet activations: one interface, several kernels, chosen by `kernel=`."""

from __future__ import annotations

import importlib
import pkgutil

from bitexp.kernels.registry import KERNELS, Kernel, choose_kernel

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["KERNELS", "Kernel", "choose_kernel"]
