"""bitexp: experiments with networks of 1, 1.58 and more bits per weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitexp.report.notebook import comparisons, grid, results

__version__ = "0.1.0"

__all__ = ["comparisons", "grid", "results"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when asked for: importing bitexp itself imports nothing else
        from bitexp.report import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'bitexp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
