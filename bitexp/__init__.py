"""bitexp: experiments with networks of 1, 1.58 and more bits per weight."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

NOTEBOOK = ("results", "grid", "comparisons")
"""What a notebook asks for; imported when it does."""


def __getattr__(name: str) -> Any:
    if name in NOTEBOOK:
        from bitexp.report import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'bitexp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *NOTEBOOK]
