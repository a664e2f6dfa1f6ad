"""Do published claims hold here, with how much certainty, and on what do they depend?

    python -m bitexp claims                          which sets of claims there are
    python -m bitexp claims check reloaded           can it answer its questions?
    python -m bitexp claims reloaded --dry-run       how many runs are missing, and about how long they take
    python -m bitexp claims reloaded                 makes them, and writes the page
    python -m bitexp claims reloaded --hours 2       as far as two hours reach
    python -m bitexp claims reloaded --known runs.csv hydra/launcher=process hydra.launcher.n_jobs=4

It can be stopped and given again. Further words, which begin with hydra, choose the launcher.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.program import run_program
from bitexp.common.spelling import nearest

if TYPE_CHECKING:
    from bitexp.claims.definition import Claims

CHECK = "check"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the claims; check NAME runs nothing")
    parser.add_argument(
        "--scale", choices=("small", "full"), default="small", help="of the runs (default: small)"
    )
    parser.add_argument("--seeds", type=int, help="instead of those in the file")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing, and make nothing")
    parser.add_argument("--runs", type=int, metavar="N", help="make at most so many now; 0: the page alone")
    parser.add_argument("--hours", type=float, metavar="H", help="begin no more runs after so many hours")
    parser.add_argument(
        "--only", metavar="QUESTION", action="append", help="make the runs of this question; again for more"
    )
    help_text = "the table of runs, which is read and goes on (default: that of the checkout, or of the page)"
    parser.add_argument("--known", type=Path, metavar="FILE", help=help_text)
    parser.add_argument("--out", type=Path, help="folder of the page (default: outputs/claims/NAME)")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="configs and claims of your own")


def run(options: argparse.Namespace, further: Sequence[str]) -> None:
    """Lists, checks, or answers.

    Raises:
        UserError: anything in the command or the file that cannot work, before any run is made.
    """
    from bitexp.claims.definition import claims_files, read_claims
    from bitexp.config.paths import conf_folders

    report = Report()
    check_options(options, further)
    names = list(options.names)
    checks = names[:1] == [CHECK]
    if checks:
        names.pop(0)
    if not names:
        own = [] if options.config_dir is None else [options.config_dir]
        known = ", ".join(claims_files([*own, *conf_folders()])) or "none"
        report.line(f"Claims: {known}. python -m bitexp claims NAME asks one of them.")
        return
    if len(names) > 1:
        raise UserError(f"one set of claims at a time, not {' and '.join(names)}")
    claims = read_claims(names[0], options.config_dir)
    if checks:
        from bitexp.claims.composed import check_composes

        check_composes(claims, options.config_dir, report)
        return
    check_asked(claims, options.scale, options.only or ())
    answer(names[0], claims, options, further, report)


def check_asked(claims: Claims, scale: str, only: Sequence[str]) -> None:
    """Raises `UserError` for questions that there are not, or that have no runs of that scale."""
    questions = claims.questions
    known = [key for key, question in questions.items() if scale in question.sweep]
    if not known:
        others = " and ".join(dict.fromkeys(other for q in questions.values() for other in q.sweep))
        raise UserError(
            f"--scale={scale}: no question of these claims has runs of that scale, but of {others}"
        )
    for key in only:
        if key not in questions:
            hint = nearest(key, questions)
            raise UserError(f"--only: unknown question '{key}'.{hint} Known: {', '.join(questions)}")
        if key not in known:
            others = " and ".join(questions[key].sweep)
            raise UserError(f"--only: question '{key}' has no runs of scale {scale}, but of {others}")


def check_options(options: argparse.Namespace, further: Sequence[str]) -> None:
    """Raises `UserError` for options that are out of their range."""
    if options.seeds is not None and options.seeds < 2:
        raise UserError(f"--seeds={options.seeds} should be 2 or more: one seed has no spread")
    if options.runs is not None and options.runs < 0:
        raise UserError(f"--runs={options.runs} should be 0 or more")
    if options.hours is not None and not options.hours > 0:
        raise UserError(f"--hours={options.hours:g} should be above 0; --dry-run makes no runs")
    for word in further:
        if not word.lstrip("+").startswith(("hydra/", "hydra.")):
            raise UserError(
                f"'{word}' would change the runs: what they are is said by the file of claims alone. Words "
                "here begin with hydra, as in hydra/launcher=process"
            )


def answer(
    name: str, claims: Claims, options: argparse.Namespace, further: Sequence[str], report: Report
) -> None:
    """Says what is missing, makes it, and writes the page and the table of runs."""
    with report.console.status("loading torch"):
        from bitexp.claims.identity import Identities
        from bitexp.claims.make import make
        from bitexp.claims.page import write_page
        from bitexp.claims.plan import Plan
        from bitexp.claims.record import joined, read_record, write_record
        from bitexp.claims.said import announce, summary
        from bitexp.track.folder import outputs

    out = options.out or outputs() / "claims" / name
    record = options.known or default_record(name) or out / "runs.csv"
    if options.known is not None and not options.known.exists() and not options.known.parent.is_dir():
        raise UserError(f"--known={options.known}: there is no folder {options.known.parent}")
    known = joined(read_record(out / "runs.csv"), read_record(record))
    with report.console.status("looking at what is known"):
        plan = Plan(claims, options.scale, known, Identities(out, options.config_dir), options.seeds)
    announce(plan, record, report)
    if options.dry_run:
        return

    def keep() -> None:
        files = dict.fromkeys([record, out / "runs.csv"])
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".runs.lock"):
            for path in files:  # others may have added lines since they were read, hours ago
                plan.record = joined(read_record(path), plan.record)
            for path in files:
                write_record(path, plan.record.values())

    keep()
    make(plan, further, report, keep, options.runs, options.hours, options.config_dir, options.only)
    with report.console.status("writing the page"):
        page = write_page(plan, out)
    summary(plan, page, record, report)


def default_record(name: str) -> Path | None:
    """The table of runs in the checkout; None where bitexp is installed."""
    from bitexp.config.paths import CONF

    sweeps = CONF.parent / "sweeps"
    return sweeps / "results" / f"{name}.csv" if sweeps.is_dir() else None


def main(words: Sequence[str]) -> int:
    """`python -m bitexp claims`. Exit codes: 0 done, 1 a run failed, 2 bad input, 130 or 143 stopped."""
    further = [word for word in words if "=" in word and not word.startswith("-")]
    own = [word for word in words if word not in further]
    return run_program("claims", __doc__, add_arguments, lambda options: run(options, further), own)
