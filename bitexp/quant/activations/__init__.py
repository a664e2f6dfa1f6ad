"""How activations become integers. Every module here is loaded, so that a new method is one file."""

from __future__ import annotations

from bitexp.common.registry import load_modules

load_modules(__name__, __path__)
