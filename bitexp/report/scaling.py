"""Quality against the bits of the whole network, by the bits of a weight: which width wins at which size?

The k-bit scaling laws (arXiv 2212.09720) and the Pareto-optimal ResNet (arXiv 2105.03536) ask this with
curves over sizes of a network. Here they are polynomials in the logarithm of the size, with the
uncertainty of their coefficients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitexp.common.format import size as bytes_text
from bitexp.report.by_bits import FULL, activation_bits, bits_text, group_of
from bitexp.report.columns import Table, numeric, word
from bitexp.report.compare import Comparison, Row
from bitexp.report.origins import TRAINING
from bitexp.report.runs import Run
from bitexp.report.stats import is_positive, is_share

Numbers = NDArray[np.float64]

SIZES = 3
"""Of so many at least a curve is made; from one more on it is of second degree, else a line."""
GRID = 200
"""Sizes at which curves are compared."""
DRAWS = 2000
"""Curves that are drawn for the uncertainty."""


@dataclass(frozen=True)
class Curve:
    """Quality over sizes for one width of weights, fitted by least squares to all runs.

    Args:
        sizes: bytes of each run's packed file. scores: its headline metric. coefficients: of a polynomial in
            `log(bytes)`, centred, that gives the transformed score. root: of their covariance, times which
            standard normal numbers are draws. freedom: runs beyond the coefficients.
    """

    bits: float
    trained: bool
    activations: float
    rows: tuple[Row, ...]
    sizes: Numbers
    scores: Numbers
    metric: str
    coefficients: Numbers
    root: Numbers
    freedom: int

    @staticmethod
    def of(rows: Sequence[Row], metric: str) -> Curve:
        """Fits the runs of some rows, of at least three sizes."""
        runs = [run for row in rows for run in row.cell.runs if "size/total_bytes" in run.metrics]
        sizes = np.array([run.metrics["size/total_bytes"] for run in runs])
        scores = np.array([run.score for run in runs])
        terms = powers(sizes, min(2, len(set(sizes)) - 2))
        values = transformed(scores, metric)
        coefficients: Numbers = np.linalg.lstsq(terms, values, rcond=None)[0].astype(np.float64)
        freedom = max(1, len(runs) - terms.shape[1])
        variance = float(np.square(values - terms @ coefficients).sum()) / freedom
        inverse = np.linalg.pinv(terms.T @ terms)
        root: Numbers = np.linalg.cholesky(inverse * variance + 1e-18 * np.eye(len(inverse)))
        first = rows[0]
        return Curve(
            group_of(first.cell) or FULL,
            is_trained(first.cell.runs[0]),
            activation_bits(first) or FULL,
            tuple(rows),
            sizes,
            scores,
            metric,
            coefficients,
            root,
            freedom,
        )

    @property
    def label(self) -> str:
        """What it is of."""
        if self.bits == FULL or self.activations == 8:
            return self.weights
        return f"{self.weights}, activations {bits_text(self.activations)}"

    @property
    def weights(self) -> str:
        """What weights it is of."""
        if self.bits == FULL:
            return "full precision"
        after = "" if self.trained else ", after training"
        return f"{bits_text(self.bits)} bit{'s' * (self.bits != 1)}{after}"

    def covers(self, sizes: Numbers) -> NDArray[np.bool_]:
        """Where it was measured: outside of its sizes it says nothing."""
        return (sizes >= self.sizes.min()) & (sizes <= self.sizes.max())

    def at(self, sizes: Numbers) -> Numbers:
        """The score that it says at some sizes."""
        values = powers(sizes, len(self.coefficients) - 1, self.sizes) @ self.coefficients
        return back(values, self.metric)

    def draws(self, sizes: Numbers, generator: np.random.Generator) -> Numbers:
        """Scores at some sizes of curves that the runs allow as well, `[DRAWS, sizes]`: Student's."""
        count = len(self.coefficients)
        normal = generator.standard_normal((DRAWS, count))
        stretch = np.sqrt(self.freedom / generator.chisquare(self.freedom, (DRAWS, 1)))
        drawn = self.coefficients + stretch * normal @ self.root.T
        return back(drawn @ powers(sizes, count - 1, self.sizes).T, self.metric)


def powers(sizes: Numbers, degree: int, of: Numbers | None = None) -> Numbers:
    """1, x, x^2 ... of the logarithms of sizes, in units in which those of the fit are about -1 to 1."""
    logs = np.log(sizes if of is None else of)
    centre, reach = (logs.min() + logs.max()) / 2, max((logs.max() - logs.min()) / 2, 1e-9)
    return np.vander((np.log(sizes) - centre) / reach, degree + 1, increasing=True)


def transformed(scores: Numbers, metric: str) -> Numbers:
    """Scores where curves are smoother: the logarithm of the error of a share, and of what is above 0."""
    if is_share(metric):
        return np.asarray(np.log(np.clip(1 - scores, 1e-9, None)))
    return np.asarray(np.log(np.clip(scores, 1e-9, None))) if is_positive(metric) else scores


def back(values: Numbers, metric: str) -> Numbers:
    """The scores of transformed ones."""
    if is_share(metric):
        return np.asarray(1 - np.exp(values))
    return np.asarray(np.exp(values)) if is_positive(metric) else values


def is_trained(run: Run) -> bool:
    """Whether a run took any step."""
    return run.flat.get(TRAINING) != "none"


def curves(comparison: Comparison) -> list[Curve]:
    """A curve for each width that was measured at three sizes or more; none where these are not two widths.

    They are of one data set, network and budget: the largest pool of rows that may be compared.
    """
    pool = max(comparison.pools.values(), key=len, default=[])
    families: dict[Any, list[Row]] = defaultdict(list)
    for place in pool:
        row = comparison.rows[place]
        if (bits := group_of(row.cell)) is not None:
            families[bits, not is_trained(row.cell.runs[0]), -(activation_bits(row) or FULL)].append(row)
    kept = [rows for _, rows in sorted(families.items()) if len(sizes_of(rows)) >= SIZES]
    found = [Curve.of(rows, comparison.metric) for rows in kept]
    return found if len({curve.bits for curve in found}) > 1 else []


def sizes_of(rows: Sequence[Row]) -> set[float]:
    """The sizes at which some rows were measured."""
    return {size for row in rows if (size := row.cell.metric("size/total_bytes")) is not None}


@dataclass(frozen=True)
class Reign:
    """From where to where one width is the best.

    `share` is the part of the drawn curves for which it is, in the middle; `next` is the best of the others.
    """

    low: float
    high: float
    best: Curve
    score: float
    share: float
    next: Curve
    next_score: float

    @property
    def middle(self) -> float:
        """The size in the middle, on a logarithmic scale."""
        return float(np.sqrt(self.low * self.high))


def reigns(found: Sequence[Curve], sign: int) -> list[Reign]:
    """Which curve is the best at which size, wherever at least two were measured; the smallest first."""
    ends = [float(end) for curve in found for end in (curve.sizes.min(), curve.sizes.max())]
    grid = np.geomspace(min(ends), max(ends), GRID)
    scores = np.array([np.where(curve.covers(grid), sign * curve.at(grid), -np.inf) for curve in found])
    several = np.isfinite(scores).sum(0) > 1
    best = np.where(several, scores.argmax(0), -1)
    cuts = [0, *(np.flatnonzero(np.diff(best)) + 1), GRID]
    made = []
    for begin, end in pairwise(cuts):
        if best[begin] < 0:
            continue
        # up to where the next one begins, or to the last size at which two were measured
        last = end if end < GRID and best[end] >= 0 else end - 1
        low, high = float(grid[begin]), float(grid[last])
        made.append(reign(found, int(best[begin]), low, high, sign))
    return made


def reign(found: Sequence[Curve], best: int, low: float, high: float, sign: int) -> Reign:
    """The best curve between two sizes, with how sure that is in the middle."""
    middle = np.array([np.sqrt(low * high)])
    there = [place for place, curve in enumerate(found) if place == best or bool(curve.covers(middle)[0])]
    generator = np.random.default_rng(0)
    drawn = np.array([sign * found[place].draws(middle, generator)[:, 0] for place in there])
    share = float((drawn.argmax(0) == there.index(best)).mean())
    others = [place for place in there if place != best]
    second = max(others, key=lambda place: sign * float(found[place].at(middle)[0]))
    scores = {place: float(found[place].at(middle)[0]) for place in (best, second)}
    return Reign(low, high, found[best], scores[best], share, found[second], scores[second])


def size_table(comparison: Comparison) -> Table | None:
    """Which width wins at which size; None where there are no curves."""
    found = curves(comparison)
    if not found:
        return None
    columns = (
        numeric("from", "from_bytes", lambda part: part.low, bytes_text),
        numeric("to", "to_bytes", lambda part: part.high, bytes_text),
        word("best weights", "best", lambda part: part.best.label),
        numeric(f"{comparison.metric}, in the middle", "score", lambda part: part.score, ".4f"),
        numeric("best of drawn curves", "share", lambda part: part.share, ".0%"),
        word("next", "next", lambda part: part.next.label),
        numeric("its", "next_score", lambda part: part.next_score, ".4f"),
    )
    caption = (
        "Which width of weights is the best at a size of the whole network, scales, head and all: by curves "
        "of second degree in the logarithm of the size (lines of three sizes), fitted to all runs, each "
        "within the sizes at which it was measured. The share is that of curves drawn by the uncertainty of "
        "the fits, in the middle of the sizes, for which it is the best. Quantizers of one width share a "
        "curve."
    )
    items = tuple(reigns(found, comparison.sign))
    return Table(
        "By size", columns, items, caption, lambda part: [r for row in part.best.rows for r in row.cell.runs]
    )
