"""Corpora of text. Every module of this folder is loaded, so that a new corpus is one file."""

from __future__ import annotations

from bitexp.common.registry import load_modules

load_modules(__name__, __path__)
