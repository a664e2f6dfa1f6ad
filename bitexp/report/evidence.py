"""The table of all that is tested about differences to the baseline, over seeds and test examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from bitexp.report.columns import FILE, LONG, Column, Table, axis_columns, numeric, word
from bitexp.report.compare import BASELINE, Comparison, Row
from bitexp.report.equivalence import POWER
from bitexp.report.examples import discordant
from bitexp.report.resampling import EXACT, Discordant, bootstrap, combined, sign_flip
from bitexp.report.stats import Paired
from bitexp.report.tables import interval, judged, members, verdict_columns
from bitexp.report.wording import p_text

FEWEST = 3
"""Seeds from which a bootstrap says anything."""


@dataclass(frozen=True)
class Evidence:
    """A row that is compared, with what is computed for this table alone."""

    row: Row
    versus: Paired
    bootstrap: tuple[float, float] | None
    p_signs: float | None
    examples: list[Discordant]

    def of_examples(self, name: str) -> float | None:
        """The mean over seeds of a count of test examples."""
        return fmean(getattr(one, name) for one in self.examples) if self.examples else None

    @property
    def p_mcnemar(self) -> float | None:
        """Of all seeds together."""
        return combined([one.p for one in self.examples]) if self.examples else None


def evidence(comparison: Comparison) -> Iterator[Evidence]:
    """Of every row with a difference that can be tested."""
    for row in comparison.rows:
        versus, base = row.versus, row.base
        if versus is None or base is None:
            continue
        examples = discordant(row.cell, base)
        tested = versus.p is not None
        if tested or examples:
            enough = tested and versus.seeds >= FEWEST
            yield Evidence(
                row,
                versus,
                bootstrap(versus.differences) if enough else None,
                sign_flip(versus.differences, versus.resolution) if tested else None,
                examples,
            )


def evidence_table(comparison: Comparison) -> Table | None:
    """A row for each difference that can be tested; None where there is none."""
    items = tuple(evidence(comparison))
    if not items:
        return None
    axes = comparison.axes
    columns = [
        replace(word("precision", "precision", lambda item: item.row.cell.precision), names=True),
        *axis_columns(axes.setting, lambda item: item.row.cell.setting, items),
        *axis_columns(axes.variant, lambda item: item.row.cell.variant, items),
        numeric(f"vs {BASELINE}", "difference", lambda item: item.versus.difference, "+.4f"),
        numeric("seeds", "seeds", lambda item: item.versus.seeds, "d", FILE),
        word("verdict", "verdict", lambda item: judged(item.row, "word")),
        *verdict_columns(lambda item: item.row, LONG),
        numeric("low", "low", lambda item: item.versus.low, "+.4f", FILE),
        numeric("high", "high", lambda item: item.versus.high, "+.4f", FILE),
        *bounds(
            "90 % (TOST)", "tost_", lambda item: (judged(item.row, "tost_low"), judged(item.row, "tost_high"))
        ),
        *bounds("95 % (BCa)", "bca_", lambda item: item.bootstrap or (None, None)),
        numeric("effect d", "effect", lambda item: item.versus.effect, "+.2f", LONG),
        numeric("p (t)", "p", lambda item: item.versus.p, p_text, LONG),
        numeric("p (signs)", "p_signs", lambda item: item.p_signs, p_text, LONG),
        Column(
            f"only ours / only {BASELINE} right",
            "only_ours",
            alone,
            lambda item: item.of_examples("ours"),
            LONG,
        ),
        numeric(f"only {BASELINE} right", "only_base", lambda item: item.of_examples("base"), ",.1f", FILE),
        numeric("p (McNemar)", "p_mcnemar", lambda item: item.p_mcnemar, p_text, LONG),
    ]
    return Table("Tests", tuple(columns), items, caption(comparison, items), lambda item: members(item.row))


def alone(item: Evidence) -> str:
    """How many test examples each of two networks alone has right."""
    counts = [item.of_examples(name) for name in ("ours", "base")]
    return " / ".join(f"{count:,.0f}" for count in counts if count is not None)


def bounds(title: str, key: str, ends: Callable[[Any], tuple[float | None, float | None]]) -> list[Column]:
    """An interval: one column for people, one for each end in files."""
    return [
        Column(
            title, f"{key}low", lambda item: interval(*ends(item), "+.4f"), lambda item: ends(item)[0], LONG
        ),
        numeric(title, f"{key}high", lambda item: ends(item)[1], "+.4f", FILE),
    ]


def caption(comparison: Comparison, items: Sequence[Evidence]) -> str:
    """What the columns are."""
    seeds = min((item.versus.seeds for item in items if item.p_signs is not None), default=0)
    parts = ["p values and intervals are those of each row by itself; verdicts are by Holm's correction."]
    if comparison.margin is not None:
        parts.append(
            f"p equivalent and the 90 % interval are those of two one-sided t tests (TOST) within "
            f"{comparison.margin.value:g}; p not worse is one of them. Seeds needed: so many would give a"
            f" verdict with a power of {POWER:.0%}, were mean and spread as seen."
        )
    if seeds:
        least = f", which cannot be below {2 / 2**seeds:.2g} with {seeds} seeds" if seeds <= EXACT else ""
        parts.append(
            f"p (signs) is the paired permutation test{least}; the BCa bootstrap is too narrow where seeds "
            "are few. Neither assumes a normal distribution."
        )
    if any(item.examples for item in items):
        parts.append(
            f"Only ours, only {BASELINE} right: test examples, as means over seeds. McNemar's exact test on "
            "them, of all seeds together by Rüger's rule, is about these networks and not about other seeds."
        )
    return " ".join(parts)
