"""Tests and intervals that assume no normal distribution, over seeds and over test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitexp.report.stats import LEVEL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT = 14
"""Seeds up to which every assignment of signs is counted."""
DRAWS = 9_999
"""Signs, or samples of the bootstrap, that are drawn; always the same ones."""


def sign_flip(differences: Sequence[float], resolution: float = 0.0) -> float:
    """The p value of the two-sided paired permutation test of a mean difference of 0 (Fisher 1935).

    The share of all assignments of signs to the differences whose mean is as far from 0 as the one seen.
    With n seeds it is at least 2 / 2^n. Above 14 seeds 9,999 assignments are drawn, and the one seen counts
    as one more (Phipson and Smyth 2010).

    Args:
        resolution: means that differ by no more than this are the same.

    Raises:
        ValueError: there is no difference.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        raise ValueError("a test needs at least one difference")
    if len(values) <= EXACT:
        bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (DRAWS, len(values)))
        bits = np.concatenate([bits, np.zeros((1, len(values)), dtype=bits.dtype)])
    means = np.abs((1 - 2 * bits) @ values) / len(values)
    seen = abs(values.mean())
    return float(np.mean(means >= seen - max(resolution, 1e-12 * float(np.abs(values).max()))))


def bootstrap(differences: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The bias-corrected and accelerated (BCa) interval of the mean (Efron 1987), by scipy.

    It is too narrow where seeds are few: beside Student's interval it shows whether the shape of the
    distribution matters, and does not replace it.

    Raises:
        ValueError: fewer than two differences, or all are the same.
    """
    import numpy as np
    from scipy import stats

    if len(set(differences)) < 2:
        raise ValueError("the bootstrap needs at least two values")
    found = stats.bootstrap(
        (np.asarray(differences, dtype=np.float64),),
        np.mean,
        confidence_level=level,
        n_resamples=DRAWS,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class Discordant:
    """Two networks on the same test examples: how many each alone has right, and McNemar's exact p value."""

    ours: int
    base: int
    p: float


def mcnemar(ours: NDArray[np.bool_], base: NDArray[np.bool_]) -> Discordant:
    """McNemar's exact test (1947) of two networks of which it is known what they have right, by example.

    Raises:
        ValueError: they were not tested on as many examples.
    """
    if ours.shape != base.shape:
        raise ValueError(f"{ours.size} examples are not compared with {base.size}")
    from scipy import special

    alone, theirs = int((ours & ~base).sum()), int((base & ~ours).sum())
    p = min(1.0, 2 * float(special.bdtr(float(min(alone, theirs)), alone + theirs, 0.5)))
    return Discordant(alone, theirs, p)


def combined(ps: Sequence[float]) -> float:
    """One p value for several, however they depend on each other: about twice their median (Rüger 1978).

    The tests of several seeds share their test examples, so that they are not independent.
    """
    middle = (len(ps) + 1) // 2
    return min(1.0, len(ps) / middle * sorted(ps)[middle - 1])
