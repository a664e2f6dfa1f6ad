"""The margin of a comparison: the one that its runs began with, and what is said where it came later."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bitexp.common.errors import UserError
from bitexp.report.runs import Run


@dataclass(frozen=True)
class Margin:
    """The smallest difference of the headline metric that matters, and what there is to say about it."""

    value: float
    remark: str = ""
    """A sentence where it was not set before all of the runs."""


def check_margin(value: float | None) -> None:
    """Raises `UserError` for what is no margin; None is left to the runs."""
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"margin={value:g} must be above 0: 0.005 is half a point of accuracy")


def margin_of(runs: Sequence[Run], given: float | None = None) -> Margin | None:
    """The margin that the first of the runs began with, unless one is given; None where there is none."""
    margins = [run.margin for run in sorted(runs, key=lambda run: str(run.first.get("started", "")))]
    value = given or next((margin for margin in margins if margin is not None), None)
    if value is None:
        return None
    others = Counter(margin for margin in margins if margin != value)
    if not others:
        return Margin(value)
    began = ", ".join(
        f"{count} began with {'none' if margin is None else f'{margin:g}'}"
        for margin, count in others.items()
    )
    return Margin(value, f"This margin was not set before all of the runs: of {len(margins)}, {began}.")
