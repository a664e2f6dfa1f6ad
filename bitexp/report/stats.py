"""Statistics over few seeds: t intervals, paired t tests, Holm's correction, Pareto fronts."""

from __future__ import annotations

import functools
import math
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


SHARES = ("accuracy",)
"""Metrics by the last word of their name that lie between 0 and 1."""
POSITIVE = ("loss", "perplexity", "bits_per_byte")
"""Those that are above 0."""


def is_share(metric: str) -> bool:
    """Whether a metric, by its whole name, lies between 0 and 1."""
    return metric.rpartition("/")[2] in SHARES


def is_positive(metric: str) -> bool:
    """Whether a metric is above 0, and has no other bound."""
    return metric.rpartition("/")[2] in POSITIVE


def spread(values: Sequence[float], metric: str = "") -> Spread:
    """Of at least one value.

    The interval is Student's. For a metric with bounds, which it would leave, it is Student's on the scale
    without bounds: that of the logit for a share, of the logarithm for what is above 0; the standard error
    there is by the delta method.
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Spread(mean, None, None, None, count)
    std = statistics.stdev(values)
    low, high = interval(mean, quantile(count - 1) * std / count**0.5, metric)
    return Spread(mean, std, low, high, count)


def interval(mean: float, reach: float, metric: str) -> tuple[float, float]:
    """A mean with its interval to both sides, inside of the bounds of a metric."""
    if is_share(metric) and 0 < mean < 1:
        centre, reach = math.log(mean / (1 - mean)), reach / (mean * (1 - mean))
        return logistic(centre - reach), logistic(centre + reach)
    if is_positive(metric) and mean > 0:
        factor = math.exp(min(reach / mean, 700.0))
        return mean / factor, mean * factor
    return mean - reach, mean + reach


def logistic(x: float) -> float:
    """The inverse of the logit, of numbers of any size."""
    return 0.5 * (1 + math.tanh(x / 2))


@functools.cache
def quantile(freedom: int, level: float = LEVEL) -> float:
    """Of Student's distribution, for both sides of an interval."""
    from scipy import special

    return float(special.stdtrit(freedom, (1 + level) / 2))


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
    differences: tuple[float, ...] = ()
    """Seed by seed."""
    resolution: float = 0.0
    """Differences that are this close are the same."""


def paired(ours: Mapping[object, float], base: Mapping[object, float], metric: str = "") -> Paired | None:
    """Ours minus base on the seeds that both have; None where they have none in common.

    The interval is that of the test; the difference of two shares is between -1 and 1, where it is cut.
    """
    common = [seed for seed in ours if seed in base]
    if not common:
        return None
    each = tuple(ours[seed] - base[seed] for seed in common)
    differences = spread(each)
    resolution = FLOAT * max(abs(value) for values in (ours, base) for value in values.values())
    if differences.std is None or differences.std <= resolution:
        return Paired(differences.mean, None, None, None, None, None, len(common), each, resolution)
    from scipy import special

    effect, low, high = differences.mean / differences.std, differences.low, differences.high
    p = 2 * float(special.stdtr(len(common) - 1, -abs(effect) * len(common) ** 0.5))
    if is_share(metric) and low is not None and high is not None:
        low, high = max(low, -1.0), min(high, 1.0)
    return Paired(differences.mean, low, high, effect, p, None, len(common), each, resolution)


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
