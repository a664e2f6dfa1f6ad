"""How much there may be: `size=50%`, `bytes=20kB`, `energy=30%`, `bops=1e9`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitexp.allocation.program import Table, Unattainable
from bitexp.common.errors import UserError
from bitexp.common.format import energy_text, size
from bitexp.common.spelling import nearest

KINDS = {"size": "bytes", "bytes": "bytes", "energy": "energy", "bops": "bops"}
"""The cost that each kind of budget is about."""
UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": {"": 1, "B": 1, "kB": 1e3, "MB": 1e6},
    "energy": {"pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "mJ": 1e-3, "J": 1},
    "bops": {"": 1},
}
"""The units of each cost."""
EXAMPLES = "size=50%, bytes=20kB, energy=30%, energy=5nJ, bops=50%"


@dataclass(frozen=True)
class Budget:
    """A limit to one cost: a share of what 8 bits in every layer take, or an amount."""

    text: str
    cost: str
    number: float
    share: bool

    @staticmethod
    def of(text: str) -> Budget:
        """From what was typed.

        Raises:
            UserError: no such kind, or no such amount.
        """
        kind, _, amount = text.partition("=")
        if kind not in KINDS:
            raise UserError(
                f"--budget {text}: '{kind}' is no budget.{nearest(kind, KINDS)} Known: {EXAMPLES}"
            )
        found = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*(%|[a-zA-Z]*)\s*", amount)
        cost = KINDS[kind]
        units = {} if kind == "size" else UNITS[cost]
        shares = [] if kind == "bytes" else ["%"]
        if found is None or found[2] not in (*shares, *units):
            known = ", ".join(unit or "none" for unit in (*shares, *units))
            raise UserError(
                f"--budget {text}: '{amount}' is no amount of {kind}. Units: {known}; as in {EXAMPLES}"
            )
        share = found[2] == "%"
        return Budget(text, cost, float(found[1]) * (0.01 if share else units[found[2]]), share)

    def limit(self, at_8_bits: float) -> float:
        """What the cost may come to."""
        return self.number * at_8_bits if self.share else self.number

    def amount(self, value: float, at_8_bits: float) -> str:
        """A cost in the words of this budget."""
        share = f"{100 * value / at_8_bits:.1f} %"
        return f"{written(self.cost, value)} ({share})" if self.share else written(self.cost, value)


def written(cost: str, value: float) -> str:
    """A cost for people."""
    return {"bytes": size, "energy": energy_text}.get(cost, lambda number: f"{number:.3g}")(value)


def check_within(
    budgets: Sequence[Budget], costs: Mapping[str, Table], at_8_bits: Mapping[str, float]
) -> dict[str, float]:
    """The limits by cost.

    Raises:
        UserError: two for one cost, or a budget that leaves nothing to decide; it says what is attainable.
    """
    limits: dict[str, float] = {}
    for budget in budgets:
        if budget.cost in limits:
            raise UserError(f"--budget {budget.text}: there is a budget of {budget.cost} already")
        table, whole = costs[budget.cost], at_8_bits[budget.cost]
        limit, most = budget.limit(whole), float(table.max(1).sum())
        if limit > most * (1 + 1e-9):
            raise UserError(
                f"--budget {budget.text} limits nothing: with the most bits in every layer it is "
                f"{budget.amount(most, whole)}. {attainable(budget, table, whole)}"
            )
        limits[budget.cost] = limit
    return limits


def attainable(budget: Budget, table: Table, at_8_bits: float) -> str:
    """From where to where a cost can go, in a sentence."""
    least, most = float(table.min(1).sum()), float(table.max(1).sum())
    return (
        f"Attainable are {budget.amount(least, at_8_bits)} to {budget.amount(most, at_8_bits)}"
        f" with these widths"
    )


def explained(
    problem: Unattainable,
    budgets: Sequence[Budget],
    costs: Mapping[str, Table],
    at_8_bits: Mapping[str, float],
) -> str:
    """Why there is no allocation, and what is attainable."""
    budget = next(one for one in budgets if one.cost == problem.name)
    whole, table = at_8_bits[budget.cost], costs[budget.cost]
    least = budget.amount(problem.least, whole)
    together = len(budgets) > 1 and problem.least > float(table.min(1).sum()) * (1 + 1e-9)
    why = " where the other budgets are kept" if together else ""
    reach = attainable(budget, table, whole)
    return f"--budget {budget.text} cannot be kept: {least} is the least{why}. {reach}"
