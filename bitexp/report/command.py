"""Which precision wins, and at what cost? Tables and plots over run folders, on one page.

    python -m bitexp report outputs/vit_ternary
    python -m bitexp report outputs/a outputs/b --out comparison
    python -m bitexp report outputs/vit_ternary --watch
    python -m bitexp report diff RUN RUN

A path is a run, a folder with runs at any depth, or the index of a multirun (outputs/NAME/sweeps/DATE).
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.program import run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="default: all of outputs")
    parser.add_argument("--out", type=Path, help="folder of the report (default: report in the first PATH)")
    help_text = "how far from the best a setting may be and still count as good (default: 0.01 of it)"
    parser.add_argument("--tolerance", type=float, default=0.01, metavar="SHARE", help=help_text)
    help_text = (
        "the smallest difference that matters, in the metric's units (default: report.margin of the runs)"
    )
    parser.add_argument("--margin", type=float, metavar="DIFFERENCE", help=help_text)
    parser.add_argument("--watch", action="store_true", help="rewrite it whenever a run ends")
    parser.add_argument("--every", type=int, default=10, metavar="SECONDS", help="how often --watch looks")


def run(options: argparse.Namespace) -> None:
    """Makes the report, once or until Ctrl-C.

    Raises:
        UserError: a path is none, there are no runs, or an option is out of its range.
    """
    from bitexp.report.margins import check_margin
    from bitexp.track.folder import outputs

    if not 0 <= options.tolerance < 1:
        raise UserError(f"--tolerance={options.tolerance:g} must be from 0 up to 1: 0.01 is one percent")
    check_margin(options.margin)
    if options.every < 1:
        raise UserError(f"--every={options.every} must be at least 1 second")
    paths = options.paths or [outputs()]
    if not options.watch:
        make(paths, options, Report())
        return
    from bitexp.report.runs import NoRuns

    seen: object = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            if (now := state(paths)) != seen:
                with contextlib.suppress(NoRuns):
                    make(paths, options, Report())
                Report().line("Waiting for runs; press Ctrl-C to stop.")
                seen = now
            time.sleep(options.every)


def state(paths: list[Path]) -> list[tuple[str, float]]:
    """Changes whenever a run begins or ends, or a job of the index of a multirun."""
    from bitexp.report.runs import places

    folders = [place for path in paths for place in places(path, [])]
    files = [folder / name for folder in folders for name in ("result.json", "config.yaml")]
    files += [file for path in paths for file in path.glob("jobs/*.json")]
    changed = []
    for file in files:
        with contextlib.suppress(OSError):  # it is not there, or a rerun has moved it aside
            changed.append((str(file), file.stat().st_mtime))
    return sorted(changed)


def make(paths: list[Path], options: argparse.Namespace, report: Report) -> None:
    """Reads the runs, writes the report, and says the short table and where the page is."""
    with report.console.status("reading runs"):
        from bitexp.common.format import counted
        from bitexp.report.columns import one_line
        from bitexp.report.compare import compare
        from bitexp.report.runs import read_runs
        from bitexp.report.studies import read_studies
        from bitexp.report.terminal import print_comparisons
        from bitexp.report.write import write_report

        runs, problems = read_runs(paths)
        studies, damaged = read_studies(paths)
        comparisons = compare(runs, options.tolerance, options.margin)
        out = options.out or place(paths[0])
        refresh = 2 * options.every if options.watch else None
        try:
            written = write_report(comparisons, runs, [*problems, *damaged], studies, out, refresh)
        except OSError as refusal:
            raise UserError(f"{out} cannot be written: {refusal}. --out names another folder") from None
    print_comparisons(report, comparisons)
    unfinished = sum(not one.finished for one in runs)
    for problem in (*problems, *damaged):
        report.line(one_line(f"not read: {problem.path}: {problem.reason}"))
    report.line(
        one_line(f"{counted(len(runs), 'run')}, {unfinished} of them not finished. Report: {written}")
    )


def place(path: Path) -> Path:
    """Where the report of a path goes: into the folder that holds the runs."""
    is_run = (path / "config.yaml").exists() or (path / "result.json").exists()
    report = (path.absolute().parent if is_run else path) / "report"
    if report.is_symlink():
        raise UserError(f"{report} is a link, and what it leads to may be another's: name it with --out")
    return report


def main(words: Sequence[str]) -> int:
    """`python -m bitexp report`. Exit codes: 0 written, 2 bad input."""
    if words[:1] == ["diff"]:
        from bitexp.report import diff

        return diff.main(words[1:])
    return run_program("report", __doc__, add_arguments, run, words)
