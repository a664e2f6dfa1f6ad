"""Layers by name: patterns of a shell on dotted names; a module's name covers all below it.

A name is also a pattern for itself, whatever characters it has: `a[0]` is the module of that name as well.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from bitexp.common.spelling import nearest


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern covers the dotted name or one of the modules it lies in."""
    parts = name.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fits(prefix, pattern) for pattern in patterns for prefix in prefixes)


def fits(name: str, pattern: str) -> bool:
    """Whether the pattern is that of the name, or the name itself."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raises `ValueError` for a pattern that matches no module and no parameter of the model."""
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            raise ValueError(
                f"no layer of the model is called '{pattern}', as quantizer.include, quantizer.exclude or "
                f"quantizer.layers has it.{nearest(pattern, names)}"
            )
