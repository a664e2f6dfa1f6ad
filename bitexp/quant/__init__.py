"""What a quantizer is, and the layers that use one. Imports torch only.

Every module of this folder is loaded, so that a new quantizer is one file (or one class).
"""

from __future__ import annotations

import importlib
import pkgutil

from bitexp.quant.registry import QUANTIZERS, Quantizer

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["QUANTIZERS", "Quantizer"]
