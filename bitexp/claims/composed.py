"""Whether the runs of a set of claims compose: what no look at the file alone can tell."""

from __future__ import annotations

from pathlib import Path

from bitexp.claims.cells import count, settings
from bitexp.claims.definition import DERIVED, Claims, Question, analysis_of
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import counted
from bitexp.common.spelling import nearest
from bitexp.config.compose import composed
from bitexp.config.schema import Settings, read_settings


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
                    check_metrics(question, read_settings(composed([*search, *typed, *tuned, "seed=0"])))
                except UserError as problem:
                    raise UserError(f"{key}, {scale}, {', '.join(place)}: {problem}") from None
            report.line(f"{key}, {scale}: {counted(count(sweep), 'run')}, {counted(sweep.seeds, 'seed')}")
    report.line("These runs can answer their questions.")


def check_metrics(question: Question, run: Settings) -> None:
    """Raises `UserError` where an analysis takes a metric that the task of its runs does not measure."""
    tested = [name for name in analysis_of(question).metrics if name.startswith(("val/", "test/"))]
    if not tested:
        return
    from bitexp.tasks import TASKS

    measures = TASKS.get(run.task.name).measures
    known = [*(name.replace("val/", "test/") for name in measures), *measures]
    for name in tested:
        if name not in known:
            hint = nearest(name, known)
            raise UserError(f"{name} is not measured by {run.task.name}.{hint} Known: {', '.join(known)}")
