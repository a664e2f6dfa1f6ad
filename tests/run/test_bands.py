"""Short recipes come to what they came to when their bands were measured."""

from __future__ import annotations

import json

import pytest

from bitexp.report.sameness import band
from tests.support.bands import FILE, METRIC, RECIPES, SEEDS, measured

KEPT = json.loads(FILE.read_text())
FAST = "ternary by the mean"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != FAST)) for name in RECIPES]
)
def test_a_recipe_lies_in_its_band(name: str) -> None:
    values = KEPT["recipes"][name]
    assert (KEPT["metric"], len(values)) == (METRIC, len(SEEDS))
    known = band(values)
    assert known is not None
    assert known.has(measured(name, seed=0))
