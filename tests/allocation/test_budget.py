"""Budgets: what is typed, and what is said of those that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from bitexp.allocation.budget import Budget, check_within, explained
from bitexp.allocation.program import Unattainable, allocate
from bitexp.common.errors import UserError

COSTS = {
    "bytes": np.array([[1000.0, 4000.0], [2000.0, 8000.0]]),
    "energy": np.array([[9.0, 1.0], [9.0, 1.0]]),
}
AT_8 = {"bytes": 12000.0, "energy": 20.0}


@pytest.mark.parametrize(
    ("text", "cost", "limit"),
    [
        ("size=50%", "bytes", 6000),
        ("bytes=2.5kB", "bytes", 2500),
        ("bytes=800", "bytes", 800),
        ("energy=25%", "energy", 5),
        ("energy=3nJ", "energy", 3e-9),
        ("bops=1e9", "bops", 1e9),
    ],
)
def test_what_can_be_typed(text: str, cost: str, limit: float) -> None:
    budget = Budget.of(text)
    assert budget.cost == cost
    assert budget.limit(AT_8.get(cost, 0.0)) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("szie=50%", "Did you mean 'size'"),
        ("size=5kB", "is no amount of size. Units: %"),
        ("bytes=50%", "is no amount of bytes. Units: none, B, kB, MB"),
        ("energy=much", "as in size=50%"),
    ],
)
def test_what_cannot(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Budget.of(text)


def test_a_budget_out_of_reach_says_what_is_attainable() -> None:
    small, large, energy = Budget.of("size=20%"), Budget.of("bytes=13kB"), Budget.of("energy=50%")
    with pytest.raises(UserError, match=r"limits nothing.*Attainable are 3.0 kB to 12.0 kB"):
        check_within([large], COSTS, AT_8)
    with pytest.raises(UserError, match="budget of bytes already"):
        check_within([small, Budget.of("bytes=4kB")], COSTS, AT_8)

    def message(*budgets: Budget) -> str:
        with pytest.raises(Unattainable) as problem:
            allocate(COSTS["bytes"], COSTS, check_within(budgets, COSTS, AT_8))
        return explained(problem.value, budgets, COSTS, AT_8)

    assert "3.0 kB (25.0 %) is the least. Attainable are 3.0 kB (25.0 %) to 12.0 kB (100.0 %)" in message(
        small
    )
    together = message(Budget.of("size=40%"), energy)
    assert "6.0 kB (50.0 %) is the least where the other budgets are kept" in together
