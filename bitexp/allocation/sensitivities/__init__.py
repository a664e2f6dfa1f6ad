"""What it costs to give a layer a width, in four measures. Every module of this folder is loaded."""

from __future__ import annotations

from bitexp.allocation.sensitivities.base import SENSITIVITIES, Sensitivity
from bitexp.common.registry import load_modules

load_modules(__name__, __path__)

__all__ = ["SENSITIVITIES", "Sensitivity"]
