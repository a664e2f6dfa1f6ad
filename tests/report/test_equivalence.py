"""Verdicts of equivalence against statsmodels, and their error rates over simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from bitexp.report.equivalence import (
    Verdict,
    corrected,
    power_of_difference,
    power_of_equivalence,
    seeds_needed,
    verdict,
)

MARGIN = 0.005
EXPERIMENTS = 2000
values = st.floats(-1, 1).map(lambda value: round(value, 3))


def standard_errors(rate: float, count: int = EXPERIMENTS) -> float:
    """Four of them: what a share of so many simulated experiments may be away from its rate."""
    return 4 * math.sqrt(rate * (1 - rate) / count)


def simulated(seeds: int, truth: float, std: float) -> list[Verdict]:
    """The verdicts of experiments whose true difference and spread are known."""
    rng = np.random.default_rng(seeds)
    return [verdict(list(one), MARGIN) for one in rng.normal(truth, std, (EXPERIMENTS, seeds))]


def share(verdicts: list[Verdict], word: str) -> float:
    return sum(one.word == word for one in verdicts) / len(verdicts)


@given(st.lists(values, min_size=2, max_size=8), st.floats(0.01, 1))
def test_the_two_one_sided_tests_are_those_of_statsmodels(differences: list[float], margin: float) -> None:
    found = verdict(differences, margin, resolution=1e-9)
    if len(set(differences)) == 1:
        assert (found.word, found.p_equivalent, found.seeds_needed) == ("undecided", None, None)
        return
    p, above, below = ttost_paired(np.array(differences), np.zeros(len(differences)), -margin, margin)
    assert found.p_equivalent == pytest.approx(p)
    assert (found.p_not_worse, found.p_not_better) == pytest.approx((above[1], below[1]))
    assert found.tost_low is not None
    assert found.tost_high is not None
    inside = -margin < found.tost_low and found.tost_high < margin
    assert (found.word == "equivalent") == inside == (p < 0.05)


def test_a_metric_of_which_less_is_better_is_turned_around() -> None:
    differences = [0.03, 0.031, 0.029, 0.0305]
    higher, lower = (verdict(differences, 0.02, better) for better in ("higher", "lower"))  # type: ignore[arg-type]
    assert (higher.word, lower.word) == ("better", "worse")
    assert (higher.p_better, higher.p_not_worse) == (lower.p_worse, lower.p_not_better)
    assert (higher.low, higher.tost_high) == (lower.low, lower.tost_high)
    assert higher.not_worse
    assert not lower.not_worse


def test_a_sure_difference_within_the_margin_is_equivalent() -> None:
    found = verdict([0.001, 0.0011, 0.0009, 0.001], MARGIN)
    assert found.low is not None
    assert found.low > 0
    assert found.word == "equivalent"


def test_one_seed_and_no_spread_are_undecided() -> None:
    for differences in ([0.1], [0.1, 0.1], [0.0, 0.0, 0.0]):
        found = verdict(differences, MARGIN)
        assert (found.word, found.low, found.p_different, found.not_worse) == ("undecided", None, None, False)
    with pytest.raises(ValueError, match="margin above 0"):
        verdict([0.1, 0.2], 0.0)
    with pytest.raises(ValueError, match="needs a difference"):
        verdict([], MARGIN)


@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds: int) -> None:
    found = simulated(seeds, truth := 0.002, std=0.004)
    for level, ends in ((0.95, ("low", "high")), (0.9, ("tost_low", "tost_high"))):
        covered = sum(getattr(one, ends[0]) <= truth <= getattr(one, ends[1]) for one in found)
        assert covered / EXPERIMENTS == pytest.approx(level, abs=standard_errors(level))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_difference_as_large_as_the_margin_is_seldom_called_equivalent(seeds: int, sign: int) -> None:
    """In 5 % of experiments where the spread is small against the margin, in fewer where it is not."""
    narrow, wide = (simulated(seeds, sign * MARGIN, std) for std in (0.0005, 0.005))
    assert share(narrow, "equivalent") == pytest.approx(0.05, abs=standard_errors(0.05))
    assert share(wide, "equivalent") <= 0.05 + standard_errors(0.05)
    assert share(narrow, "worse" if sign > 0 else "better") == 0
    not_worse = sum(one.not_worse for one in wide) / EXPERIMENTS
    assert not_worse == pytest.approx(0.05, abs=standard_errors(0.05)) if sign < 0 else not_worse > 0.4


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_no_difference_is_seldom_called_one(seeds: int) -> None:
    found = simulated(seeds, 0.0, std=0.02)
    for word in ("better", "worse"):
        assert share(found, word) == pytest.approx(0.025, abs=standard_errors(0.025))


@pytest.mark.parametrize(("seeds", "std", "mean"), [(5, 0.003, 0.0), (8, 0.005, 0.001), (20, 0.006, -0.002)])
def test_the_power_is_that_of_simulated_experiments(seeds: int, std: float, mean: float) -> None:
    power = power_of_equivalence(seeds, std, MARGIN, mean=mean)
    found = simulated(seeds, mean, std)
    assert 0.1 < power < 0.99
    tost = sum(one.p_equivalent is not None and one.p_equivalent < 0.05 for one in found) / EXPERIMENTS
    assert tost == pytest.approx(power, abs=standard_errors(power))


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0, 3.0, 30.0])
def test_the_seeds_needed_are_the_fewest_with_that_power(ratio: float) -> None:
    needed = seeds_needed(ratio * MARGIN, MARGIN)
    assert needed is not None
    assert power_of_equivalence(needed, ratio * MARGIN, MARGIN) >= 0.8
    assert needed == 2 or power_of_equivalence(needed - 1, ratio * MARGIN, MARGIN) < 0.8
    if ratio >= 1:
        assert TTestPower().power(1 / ratio, needed, 0.05) >= 0.8  # of finding a difference of the margin
    if ratio >= 3:  # (z(0.95) + z(0.9))^2 in the limit
        assert needed == pytest.approx((1.6449 + 1.2816) ** 2 * ratio**2, rel=0.04)


@pytest.mark.parametrize(("seeds", "effect"), [(3, 0.5), (5, 1.0), (20, 0.7), (5, 30.0), (100_000, 3.0)])
def test_the_power_to_find_a_difference_is_that_of_statsmodels(seeds: int, effect: float) -> None:
    expected = TTestPower().power(effect, seeds, 0.05)
    assert power_of_difference(seeds, 0.01, mean=-0.01 * effect) == pytest.approx(expected, abs=1e-6)


def test_an_undecided_row_needs_more_seeds_than_it_has() -> None:
    """Whichever verdict the mean seen would lead to, also where other rows of the table cost it its own."""
    for mean in (0.0, 0.001, 0.0025, -0.004, 0.006):
        noise = np.random.default_rng(1).normal(size=5)
        noise = (noise - noise.mean()) / noise.std(ddof=1)
        row = verdict(list(mean + 0.0055 * noise), MARGIN)
        assert row.word == "undecided"
        assert row.seeds_needed is not None
        assert row.seeds_needed > 5
        among_many = corrected([row] * 4)[0]
        assert among_many is not None
        assert among_many.seeds_needed is not None
        assert among_many.seeds_needed > row.seeds_needed
    near = seeds_needed(0.005, MARGIN, mean=MARGIN)
    assert near is not None
    assert TTestPower().power(1.0, near, 0.05) >= 0.8 > TTestPower().power(1.0, near - 1, 0.05)


def test_no_number_of_seeds_helps_against_noise_without_bound() -> None:
    assert seeds_needed(1.0, 1e-6) is None


def test_words_of_one_table_are_by_holms_correction() -> None:
    sure = verdict([0.010, 0.0102, 0.0098, 0.0101], MARGIN)
    barely = verdict([0.01, 0.02, 0.04, 0.02], MARGIN)
    assert (sure.word, barely.word) == ("better", "better")
    assert barely.p_different is not None
    assert 0.025 < barely.p_different < 0.05
    words = [one.word for one in corrected([sure, None, barely, barely]) if one]
    assert words == ["better", "undecided", "undecided"]
    assert corrected([barely]) == [barely]
    assert [one.comparisons for one in corrected([sure, None, barely, barely]) if one] == [3, 3, 3]


def test_a_table_of_many_comparisons_seldom_has_any_false_verdict() -> None:
    """Eight rows of which four differ by the margin and four by nothing, with little and with much spread."""
    rng = np.random.default_rng(0)
    truths = np.repeat([0.0, MARGIN], 4)
    for std in (0.0005, 0.01):
        wrong = 0
        for table in rng.normal(truths, std, (300, 5, 8)):
            found = corrected([verdict(list(row), MARGIN) for row in table.T])
            words = [one.word for one in found if one]
            wrong += "equivalent" in words[4:] or "worse" in words or "better" in words[:4]
        assert wrong / 300 <= 0.05 + standard_errors(0.05, 300)
