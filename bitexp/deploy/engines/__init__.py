"""The engines that run what was exported, as far as they are installed, for comparisons with bitexp."""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.deploy.engines.engine import ENGINES, Engine, Text

__all__ = ["ENGINES", "Engine", "Text"]

load_modules(__name__, __path__)
