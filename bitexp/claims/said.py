"""What the command says: how much is missing before the first run, and the verdicts after the last."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from bitexp.claims.page import in_numbers, sentence
from bitexp.claims.plan import Plan
from bitexp.common.console import Report
from bitexp.common.format import counted, duration, path_text


def announce(plan: Plan, record: Path, report: Report) -> None:
    """How many runs each question has, how many are known, and about how long the others take."""
    out = Table(box=box.SIMPLE_HEAD)
    for name in ("question", "seeds", "runs", "known", "missing", "about"):
        out.add_column(name, justify="left" if name == "question" else "right")
    seconds = 0.0
    counted_cells = set[tuple[str, ...]]()
    for part in plan.parts:
        left = part.open * part.seconds
        shared = sum(cell.typed in counted_cells for cell in part.missing)
        counted_cells |= {cell.typed for cell in part.missing}
        seconds += left - shared * part.seconds
        numbers = (part.sweep.seeds, f"{part.total:,}", f"{part.known:,}", f"{part.open:,}")
        out.add_row(escape(part.key), *map(str, numbers), duration(left) if left else "")
    report.table(out)
    report.sentences(
        f"{counted(len(plan.parts), 'question')} at scale {plan.scale}; about {duration(seconds)} for what "
        "is missing, one run after the other. Questions share runs."
    )
    if other := plan.of_other_source():
        report.sentences(f"By a different version of bitexp, and counted: {counted(other, 'known run')}.")
    if unused := len(plan.unused()):
        report.sentences(
            f"Of {path_text(record)}, {counted(unused, 'run')} of other code, data or settings "
            f"{'answers' if unused == 1 else 'answer'} none of these questions."
        )


def summary(plan: Plan, page: Path, record: Path, report: Report) -> None:
    """The verdicts, and what to do next."""
    report.line()
    for part in plan.parts:
        answer = part.answer
        report.sentences(f"{part.key}: {sentence(part, answer)}")
        if numbers := in_numbers(answer):
            report.sentences(f"  {numbers}")
    left = sum(part.open for part in plan.parts)
    if left:
        report.sentences(f"{counted(left, 'run')} not finished yet: the same command goes on.")
    if diverged := sum(part.diverged for part in plan.parts):
        report.sentences(
            f"{counted(diverged, 'run')} diverged: tuning chooses no setting whose loss became NaN, and a "
            "choice that lacks a seed for it has no verdict. A smaller optimizer.lr may help."
        )
    report.line(f"Page: {path_text(page)}")
    report.line(f"Runs: {path_text(record)}")
