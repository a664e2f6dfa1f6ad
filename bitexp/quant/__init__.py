"""What a quantizer is, and the layers that use one. Imports torch only.

Every module of this folder is loaded, so that a new quantizer is one file (or one class).
"""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.quant.quantizer import QUANTIZERS, Quantizer

load_modules(__name__, __path__)

__all__ = ["QUANTIZERS", "Quantizer"]
