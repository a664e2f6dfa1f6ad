"""bitexp: experiments with networks of 1, 1.58 and more bits per weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitexp.common.lazy import lazy

if TYPE_CHECKING:
    from bitexp.report.notebook import comparisons, grid, results

__version__ = "0.1.0"

__all__ = ["comparisons", "grid", "results"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "report.notebook"))


def __dir__() -> list[str]:
    return [*globals(), *__all__]
