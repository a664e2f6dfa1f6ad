"""What is done to a quantized network after training. Every module of this folder is loaded."""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.quant.calibration.base import CALIBRATIONS, Calibration

load_modules(__name__, __path__)

__all__ = ["CALIBRATIONS", "Calibration"]
