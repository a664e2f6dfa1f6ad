"""As good as another, within a margin that was set before the runs: two one-sided tests, on paired seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from bitexp.report.stats import LEVEL, holm, quantile

Word = Literal["better", "equivalent", "worse", "undecided"]
POWER = 0.8
"""The chance of a verdict that `seeds_needed` asks for."""
MOST = 1_000_000
"""Seeds above which none are counted."""


@dataclass(frozen=True)
class Verdict:
    """What differences seed by seed say, given the margin below which a difference does not matter.

    `equivalent` where two one-sided t tests (TOST, Schuirmann 1987) reject at 1 - level that the mean
    difference is as far from 0 as the margin, which is where the interval from `tost_low` to `tost_high` (of
    2 level - 1) lies inside of it. Else `better` or `worse` where the interval from `low` to `high` (of
    `level`) leaves out 0, else `undecided`. A difference that is sure and smaller than the margin is so
    `equivalent`, and `p_better` and `p_worse` tell its direction.

    Mean and intervals are in the units of the metric, ours minus base. The p values are of one-sided tests:
    `p_better` and `p_worse` against no difference, `p_not_worse` and `p_not_better` against the margin (the
    first of these two by itself is the test of non-inferiority). All but the mean are None for fewer than two
    seeds, and where all differences are the same, so that there is no spread to test against.
    """

    word: Word
    mean: float
    margin: float
    seeds: int
    level: float = LEVEL
    std: float | None = None
    low: float | None = None
    high: float | None = None
    tost_low: float | None = None
    tost_high: float | None = None
    p_better: float | None = None
    p_worse: float | None = None
    p_not_worse: float | None = None
    p_not_better: float | None = None
    comparisons: int = 1
    """How many there are in its table."""

    @property
    def p_equivalent(self) -> float | None:
        """Of both one-sided tests together: the larger one."""
        if self.p_not_worse is None or self.p_not_better is None:
            return None
        return max(self.p_not_worse, self.p_not_better)

    @property
    def p_different(self) -> float | None:
        """Of the two-sided paired t test."""
        if self.p_better is None or self.p_worse is None:
            return None
        return 2 * min(self.p_better, self.p_worse)

    @property
    def not_worse(self) -> bool:
        """Non-inferiority: whether ours is worse than base by less than the margin, or better."""
        return self.p_not_worse is not None and self.p_not_worse < 1 - self.level

    @cached_property
    def seeds_needed(self) -> int | None:
        """How many seeds would give a verdict with a power of 80 %, were mean and spread as seen.

        At the level that Bonferroni's correction gives each of the `comparisons`; Holm's gives no less.
        """
        if self.std is None:
            return None
        level = 1 - (1 - self.level) / self.comparisons
        return seeds_needed(self.std, self.margin, level, mean=self.mean)


def verdict(
    differences: Sequence[float],
    margin: float,
    better: Literal["higher", "lower"] = "higher",
    level: float = LEVEL,
    resolution: float = 0.0,
) -> Verdict:
    """The verdict on differences (ours minus base, one for each common seed), by itself; see `corrected`.

    Args:
        margin: the smallest difference that matters, in the metric's units.
        better: whether a higher or a lower value of the metric is the better one.
        resolution: differences that spread no more than this are the same.

    Raises:
        ValueError: no difference, or a margin that is not above 0.
    """
    if not differences or not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"a verdict needs a difference and a margin above 0, not {margin} of {differences}")
    mean, seeds = statistics.fmean(differences), len(differences)
    undecided = Verdict("undecided", mean, margin, seeds, level)
    std = statistics.stdev(differences) if seeds > 1 else 0.0
    if std <= resolution:
        return undecided
    from scipy import special

    error, freedom = std / math.sqrt(seeds), seeds - 1
    gain = mean if better == "higher" else -mean
    reach, reach_tost = error * quantile(freedom, level), error * quantile(freedom, 2 * level - 1)
    tested = replace(
        undecided,
        std=std,
        low=mean - reach,
        high=mean + reach,
        tost_low=mean - reach_tost,
        tost_high=mean + reach_tost,
        p_better=float(special.stdtr(freedom, -gain / error)),
        p_worse=float(special.stdtr(freedom, gain / error)),
        p_not_worse=float(special.stdtr(freedom, -(gain + margin) / error)),
        p_not_better=float(special.stdtr(freedom, (gain - margin) / error)),
    )
    return decided(tested, tested.p_equivalent, tested.p_different)


def decided(verdict: Verdict, p_equivalent: float | None, p_different: float | None) -> Verdict:
    """With the word that these p values give."""
    word: Word = "undecided"
    if p_equivalent is not None and p_equivalent < 1 - verdict.level:
        word = "equivalent"
    elif p_different is not None and p_different < 1 - verdict.level:
        assert verdict.p_better is not None
        word = "better" if verdict.p_better < 0.5 else "worse"
    return replace(verdict, word=word)


def corrected(verdicts: Sequence[Verdict | None]) -> list[Verdict | None]:
    """The verdicts of one table, by Holm's correction over all differences and over all equivalences in it.

    Only words change; p values and intervals stay those of each by itself. None stays None.
    """
    equivalent = holm([None if v is None else v.p_equivalent for v in verdicts])
    different = holm([None if v is None else v.p_different for v in verdicts])
    count = max(1, sum(p is not None for p in equivalent))
    return [
        None if v is None else decided(replace(v, comparisons=count), *ps)
        for v, *ps in zip(verdicts, equivalent, different, strict=True)
    ]


def seeds_needed(
    std: float, margin: float, level: float = LEVEL, power: float = POWER, mean: float = 0.0
) -> int | None:
    """The fewest common seeds that give a verdict with this chance, where mean and spread are truly these.

    Args:
        std: of the differences over seeds.
        mean: of the differences; where it is 0, the verdict can only be `equivalent`.

    Returns:
        None where there would have to be more than a million.
    """

    def enough(seeds: int) -> bool:
        return (
            power_of_equivalence(seeds, std, margin, level, mean) >= power
            or power_of_difference(seeds, std, level, mean) >= power
        )

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def power_of_equivalence(
    seeds: int, std: float, margin: float, level: float = LEVEL, mean: float = 0.0
) -> float:
    """The chance that TOST says equivalent where this is the true mean difference, exactly.

    The integral over the standard deviation that may be seen (its square is a chi-squared) of the chance that
    the mean lies close enough to 0 for it, by the midpoint rule over 2,000 quantiles.
    """
    import numpy as np
    from scipy import special

    freedom, error = seeds - 1, std / math.sqrt(seeds)
    quantiles = (np.arange(2000) + 0.5) / 2000
    ratio = np.sqrt(2 * special.gammaincinv(freedom / 2, quantiles) / freedom)
    room = np.clip(margin / error - quantile(freedom, 2 * level - 1) * ratio, 0, None)
    return float((special.ndtr(room - mean / error) - special.ndtr(-room - mean / error)).mean())


def power_of_difference(seeds: int, std: float, level: float = LEVEL, mean: float = 0.0) -> float:
    """The chance that the two-sided paired t test finds a difference where this is the true mean."""
    from scipy import special

    freedom, reach = seeds - 1, quantile(seeds - 1, level)
    shift = abs(mean) / std * math.sqrt(seeds)
    return float(special.nctdtr(freedom, shift, -reach) + 1 - special.nctdtr(freedom, shift, reach))
