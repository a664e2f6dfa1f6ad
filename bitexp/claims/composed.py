"""Whether the runs of a set of claims compose: what no look at the file alone can tell."""

from __future__ import annotations

from pathlib import Path

from bitexp.claims.cells import count, settings
from bitexp.claims.definition import DERIVED, Claims
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import counted
from bitexp.config.compose import composed
from bitexp.config.schema import read_settings


def check_composes(claims: Claims, config_dir: Path | None, report: Report) -> None:
    """Composes one run for every choice of every axis, and says how many runs there are.

    Raises:
        UserError: words that are none of a run, with the question that has them.
    """
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.absolute()}]"]
    for key, question in claims.questions.items():
        for scale, sweep in question.sweep.items():
            seen = set[tuple[int, str]]()
            for place, words in settings(sweep):
                new = set(enumerate(place)) - seen
                if not new:
                    continue
                seen |= new
                typed = [word for word in words if word.partition("=")[0] not in DERIVED]
                tuned = [] if sweep.tune is None else [f"{sweep.tune.key}={sweep.tune.values[0]}"]
                try:
                    read_settings(composed([*search, *typed, *tuned, "seed=0"]))
                except UserError as problem:
                    raise UserError(f"{key}, {scale}, {', '.join(place)}: {problem}") from None
            report.line(f"{key}, {scale}: {counted(count(sweep), 'run')}, {counted(sweep.seeds, 'seed')}")
    report.line("These runs can answer their questions.")
