"""Permutation test, bootstrap and McNemar's test against scipy, statsmodels and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from bitexp.report.resampling import EXACT, bootstrap, combined, mcnemar, sign_flip

integers = st.integers(-20, 20)


@given(st.lists(integers, min_size=2, max_size=7))
def test_all_signs_are_those_of_scipys_permutation_test(differences: list[int]) -> None:
    found = scipy.stats.permutation_test(
        (np.array(differences, float), np.zeros(len(differences))),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
    )
    assert sign_flip(differences) == pytest.approx(found.pvalue)


def test_equal_means_are_equal_whatever_fp32_made_of_them() -> None:
    """Accuracies are means over so many images: 3 + 1 - 2 and 3 - 1 are the same number of them."""
    images = np.array([3, 1, -2, 4]) / 10_000
    noisy = images + np.array([0, 3e-9, -5e-9, 2e-9])
    assert sign_flip(list(noisy), resolution=1e-7) == sign_flip([3, 1, -2, 4])


def test_few_seeds_leave_no_small_p_value() -> None:
    assert sign_flip([1.0, 1.1, 0.9, 1.2, 1.0]) == 2 / 2**5


def test_drawn_signs_give_what_all_signs_give() -> None:
    differences = list(np.random.default_rng(0).normal(0.4, 1, EXACT + 1))
    signs = 1 - 2 * (np.arange(2 ** (EXACT + 1))[:, None] >> np.arange(EXACT + 1) & 1)
    exact = np.mean(np.abs(signs @ differences) >= abs(sum(differences)) - 1e-12)
    assert 0.01 < exact < 0.9
    assert sign_flip(differences) == pytest.approx(exact, abs=0.015)
    assert sign_flip(list(np.full(40, 1.0) + np.arange(40) / 100)) == pytest.approx(1 / 10_000)
    with pytest.raises(ValueError, match="at least one"):
        sign_flip([])


def test_the_permutation_test_keeps_its_level_where_differences_are_far_from_normal() -> None:
    """Symmetric about 0, with tails so heavy that they have no variance."""
    rng = np.random.default_rng(0)
    found = np.array([sign_flip(list(one)) for one in rng.standard_cauchy((2000, 8))])
    assert np.mean(found <= 0.05) == pytest.approx(12 / 256, abs=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_the_bootstrap_is_drawn_the_same_every_time_and_lies_within_the_values(seeds: int) -> None:
    differences = list(np.random.default_rng(seeds).normal(size=seeds))
    low, high = bootstrap(differences)
    assert (low, high) == bootstrap(differences)
    assert min(differences) <= low < np.mean(differences) < high <= max(differences)
    with pytest.raises(ValueError, match="at least two"):
        bootstrap([0.1, 0.1])


def test_the_bootstrap_agrees_with_students_interval_of_many_seeds() -> None:
    differences = list(np.random.default_rng(0).normal(1, 1, 60))
    student = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert bootstrap(differences) == pytest.approx(tuple(student), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "expected"), [(3, 0.72), (5, 0.83), (10, 0.90), (30, 0.93)])
def test_the_bootstrap_of_few_seeds_is_too_narrow_by_what_the_readme_says(
    seeds: int, expected: float
) -> None:
    samples = np.random.default_rng(seeds).normal(size=(1500, seeds))
    covered = [low <= 0 <= high for low, high in (bootstrap(list(sample)) for sample in samples)]
    assert np.mean(covered) == pytest.approx(expected, abs=0.03)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_that_of_statsmodels(pairs: list[tuple[bool, bool]]) -> None:
    ours, base = np.array(pairs).T
    table = [[np.sum(ours & base), np.sum(ours & ~base)], [np.sum(base & ~ours), np.sum(~ours & ~base)]]
    found = mcnemar(ours, base)
    assert (found.ours, found.base) == (table[0][1], table[1][0])
    assert found.p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)


def test_networks_on_other_examples_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 examples are not compared with 2"):
        mcnemar(np.ones(3, bool), np.ones(2, bool))


def test_p_values_of_several_seeds_keep_their_level_however_they_depend() -> None:
    assert combined([0.03]) == 0.03
    assert combined([0.2, 0.01, 0.02]) == pytest.approx(0.03)
    assert combined([0.2, 0.01, 0.02, 0.5]) == pytest.approx(0.04)
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(4000, 1))
    for weight in (0.0, 0.7, 1.0):
        z = weight * shared + np.sqrt(1 - weight**2) * rng.normal(size=(4000, 5))
        found = np.array([combined(list(ps)) for ps in 2 * scipy.stats.norm.sf(np.abs(z))])
        assert np.mean(found <= 0.05) <= 0.055
