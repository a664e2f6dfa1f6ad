"""Corruptions of test images at five strengths, as in CIFAR-10-C (Hendrycks & Dietterich, arXiv 1903.12261).

Constants and algorithms are those of its `make_cifar_c.py`, for images of about 32 x 32. BiBench (arXiv
2301.11233) tests binary networks on them. Every module of this folder is loaded, so that a new corruption is
one function.
"""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.data.images.corruptions.registry import CORRUPTIONS, STRENGTHS, corrupted

__all__ = ["CORRUPTIONS", "STRENGTHS", "corrupted"]

load_modules(__name__, __path__)
