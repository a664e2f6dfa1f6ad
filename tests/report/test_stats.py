"""Statistics over few seeds, against scipy, statsmodels' documented numbers and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bitexp.report.stats import front, holm, paired, spread, within

scores = st.floats(0, 1).map(lambda value: round(value, 3))


@given(st.lists(scores, min_size=2, max_size=8))
def test_the_interval_is_students(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    if len(set(values)) > 1:
        low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_one_seed_has_no_spread_and_no_interval() -> None:
    found = spread([0.5])
    assert (found.mean, found.std, found.low, found.high, found.seeds) == (0.5, None, None, None, 1)


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=6))
def test_differences_are_tested_seed_by_seed(pairs: list[tuple[float, float]]) -> None:
    ours, base = ({seed: pair[i] for seed, pair in enumerate(pairs)} for i in (0, 1))
    found = paired({**ours, "only ours": 5.0}, {"only theirs": 7.0, **base})
    apart = np.subtract(*zip(*pairs, strict=True))
    assert found is not None
    assert found.seeds == len(pairs)
    assert found.difference == pytest.approx(np.mean(apart))
    if np.std(apart) < 1e-5:
        assert found.p is found.effect is None
        return
    test = scipy.stats.ttest_rel(list(ours.values()), list(base.values()))
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.effect == pytest.approx(np.mean(apart) / np.std(apart, ddof=1))


def test_seeds_that_are_not_common_give_no_difference() -> None:
    assert paired({0: 1.0}, {1: 2.0}) is None
    one = paired({0: 1.0, 1: 5.0}, {0: 0.5})
    assert one is not None
    assert (one.difference, one.low, one.p, one.seeds) == (0.5, None, None, 1)


def test_differences_that_are_all_the_same_have_no_p_value() -> None:
    """As fp32 means of 360 images give them: 6 images each, apart in the seventh digit."""
    found = paired({0: 0.9833333, 1: 0.9805556}, {0: 0.9666667, 1: 0.9638889})
    assert found is not None
    assert (found.p, found.effect) == (None, None)
    assert found.difference == pytest.approx(6 / 360, abs=1e-6)


def test_holm_of_the_published_example() -> None:
    """Holm 1979 as worked out in the R documentation of p.adjust's method, by hand for four tests."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_between_raw_and_bonferroni_and_keeps_the_order(values: list[float]) -> None:
    found = holm(values)
    for raw, corrected in zip(values, found, strict=True):
        assert corrected is not None
        assert raw <= corrected <= min(1.0, len(values) * raw)
    order = np.argsort(values, kind="stable")
    assert list(np.array(found)[order]) == sorted(np.array(found)[order])
    assert holm([None, *values, None])[1:-1] == found


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    chosen = [points[i] for i in front(points)]
    assert len(set(chosen)) == len(chosen)
    beaten = {p for p in points for q in points if q[0] <= p[0] and q[1] >= p[1] and q != p}
    assert set(chosen) == set(points) - beaten
    assert chosen == sorted(chosen)


@pytest.mark.parametrize(
    ("sign", "tolerance", "expected"),
    [(1, 0.1, 2 / 4), (1, 0.0, 1 / 4), (1, 0.5, 3 / 4), (-1, 0.1, 1 / 4), (-1, 1.0, 2 / 4)],
)
def test_robustness_is_the_share_within_the_tolerance(sign: int, tolerance: float, expected: float) -> None:
    assert within([1.0, 0.9, 0.5, 0.3], sign, tolerance) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_interval_of_a_share_stays_between_0_and_1(values: list[float]) -> None:
    found = spread(values, "test/accuracy")
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1
    other = spread([1 - value for value in values], "test/accuracy")
    assert (found.low, found.high) == pytest.approx((1 - (other.high or 0), 1 - (other.low or 0)), abs=1e-6)


def test_the_interval_of_a_share_is_that_of_its_logit() -> None:
    """By the delta method: the standard error over m (1 - m), as for proportions; far from bounds as ever."""
    values = [0.90, 0.96, 0.99]
    found, mean = spread(values, "test/accuracy"), np.mean(values)
    reach = scipy.stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5 / (mean * (1 - mean))
    expected = scipy.special.expit(scipy.special.logit(mean) + np.array([-reach, reach]))
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    near = [0.4999, 0.5, 0.5001]
    assert spread(near, "test/accuracy").low == pytest.approx(spread(near).low, abs=1e-6)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(("metric", "truth", "std"), [("test/accuracy", 0.9, 0.01), ("val/loss", 1.2, 0.05)])
def test_intervals_cover_the_truth_as_often_as_they_say(
    metric: str, truth: float, std: float, seeds: int
) -> None:
    """Over 2,000 simulated experiments, within four standard errors of that share."""
    experiments = np.random.default_rng(seeds).normal(truth, std, (2000, seeds))
    found = [spread(list(one), metric) for one in experiments]
    covered = np.mean([one.low <= truth <= one.high for one in found if one.low and one.high])
    assert covered == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 2000) ** 0.5)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6))
def test_the_interval_of_a_loss_stays_above_0(values: list[float]) -> None:
    found = spread(values, "val/loss")
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean * (1 + 1e-12)
    assert found.low * found.high == pytest.approx(found.mean**2) or found.high > 1e200


def test_a_difference_of_shares_is_cut_at_1() -> None:
    found = paired({0: 0.1, 1: 0.9}, {0: 0.0, 1: 0.1}, "test/accuracy")
    assert found is not None
    assert (found.low, found.high) == (-1.0, 1.0)
