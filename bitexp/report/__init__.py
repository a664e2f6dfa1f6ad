"""Comparing runs: folders -> runs -> rows with statistics -> tables, plots and one page.

from bitexp.report import comparisons
comparisons("outputs/vit_ternary")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitexp.common.lazy import lazy

if TYPE_CHECKING:
    from bitexp.report.notebook import comparisons, grid, results

__all__ = ["comparisons", "grid", "results"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "notebook"))


def __dir__() -> list[str]:
    return [*globals(), *__all__]
