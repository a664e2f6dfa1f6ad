"""Rules for the gradient through rounding. Every module here is loaded, so that a new rule is one file."""

from __future__ import annotations

from bitexp.common.registry import load_modules

load_modules(__name__, __path__)
