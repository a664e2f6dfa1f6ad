"""Statistics over few seeds: t intervals, paired t tests, Holm's correction, Pareto fronts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""Of every confidence interval."""
FLOAT = 1e-6
"""Metrics are averaged in fp32: values closer than this share of them are the same."""


@dataclass(frozen=True)
class Spread:
    """Values over seeds: mean, standard deviation and Student's interval; one seed has but a mean."""

    mean: float
    std: float | None
    low: float | None
    high: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Spread(mean, None, None, None, count)
    from scipy import stats

    std = statistics.stdev(values)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * std / count**0.5
    return Spread(mean, std, mean - reach, mean + reach, count)


@dataclass(frozen=True)
class Paired:
    """A difference seed by seed.

    `effect` is Cohen's d_z (mean over standard deviation of the differences), `p` of the two-sided
    paired t test, `p_holm` after Holm's correction. They and the interval are None for one common seed, and
    where all differences are the same, so that there is no spread to test against.
    """

    difference: float
    low: float | None
    high: float | None
    effect: float | None
    p: float | None
    p_holm: float | None
    seeds: int


def paired(ours: Mapping[object, float], base: Mapping[object, float]) -> Paired | None:
    """Ours minus base on the seeds that both have; None where they have none in common."""
    common = [seed for seed in ours if seed in base]
    if not common:
        return None
    differences = spread([ours[seed] - base[seed] for seed in common])
    largest = max(abs(value) for values in (ours, base) for value in values.values())
    if differences.std is None or differences.std <= FLOAT * largest:
        return Paired(differences.mean, None, None, None, None, None, len(common))
    from scipy import stats

    test = stats.ttest_rel([ours[seed] for seed in common], [base[seed] for seed in common])
    effect, p = differences.mean / differences.std, float(test.pvalue)
    return Paired(differences.mean, differences.low, differences.high, effect, p, None, len(common))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number by Holm's step-down method (1979); None stays None."""
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (cost, quality; more is better) no other is as cheap and as good as, cheapest first."""
    best, chosen = float("-inf"), []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[place][1] > best:
            best = points[place][1]
            chosen.append(place)
    return chosen


def within(values: Sequence[float], sign: int, tolerance: float) -> float:
    """The share of values no further from the best than `tolerance` times it; sign -1: less is better."""
    best = max(values, key=lambda value: sign * value)
    reach = tolerance * abs(best)
    return sum(abs(value - best) <= reach * (1 + 1e-9) for value in values) / len(values)
