"""Makes a run again from its folder, and says whether it is the same.

    python -m bitexp reproduce outputs/fashion_mlp/ID
    python -m bitexp reproduce outputs/fashion_mlp/ID --source now
    python -m bitexp reproduce outputs/fashion_mlp/ID --uncommitted

It is made with the source of its commit where git has that, in a folder of its own, and said to be equal to
the bit, within the band of its seeds, or different, with the step from which on. What was not committed of
the source lies in the run's folder; it is code, and so it is applied only if you ask for it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.exit import Progress
from bitexp.common.format import counted, path_text
from bitexp.common.program import run_program

if TYPE_CHECKING:
    from bitexp.report.runs import Run
    from bitexp.report.sameness import Sameness

AGAIN = """
import sys, yaml
from pathlib import Path
from bitexp.common.console import Report
from bitexp.run.road import run
folder = Path(sys.argv[1])
config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
words = yaml.safe_load((folder / "overrides.yaml").read_text(encoding="utf-8"))
config |= {"rerun": True, "logger": {}}
try:
    outcome = run(config, words, Report())
except Exception as problem:
    if "UserError" not in [kind.__name__ for kind in type(problem).__mro__]:
        raise
    sys.exit(f"bitexp: {problem}")
sys.exit({"finished": 0, "stopped": 130}.get(outcome.status, 1))
"""
"""What makes the run, by the `bitexp` of any commit that has a road, wherever its errors are."""
CHECKOUT = 600.0
"""Seconds that git may take to check out a commit."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument(
        "run", metavar="RUN", help="the folder of a finished run, or one of runs: the one that ended last"
    )
    parser.add_argument(
        "--source",
        choices=("commit", "now"),
        default="commit",
        help="commit: that of the run, where git has it (default); now: as it is here",
    )
    parser.add_argument(
        "--uncommitted", action="store_true", help="apply uncommitted.diff of the run's folder"
    )
    help_text = "where it is made (default: reproduced beside the experiments of the run)"
    parser.add_argument("--out", type=Path, help=help_text)


def reproduce(options: argparse.Namespace) -> None:
    """Makes it, compares, and says the answer; exit code 1 where it is different.

    Raises:
        UserError: there is no such run, or its source cannot be had.
    """
    from bitexp.deploy.load import find_run
    from bitexp.report.runs import Problem, read_run
    from bitexp.report.sameness import compare_again, surroundings

    report = Report()
    folder = find_run(options.run).absolute()
    before = read_run(folder)
    if isinstance(before, Problem):
        raise UserError(f"{path_text(folder)}: {before.reason}")
    if not before.finished:
        raise UserError(f"{path_text(folder)} is {before.status}: only a finished run can be made again")
    out = (options.out or folder.parent.parent / "reproduced").absolute()
    with source(before, options, report) as place:
        code = make(folder, place, out)
    if code >= 128:
        Progress.note(code)
        report.line("Stopped. The same command continues it.")
        return
    if code:
        Progress.note(1)
        report.line(f"It could not be made again: its process ended with exit code {code}, for what it said.")
        return
    again = read_made(out / before.name, before)
    if not again.finished:
        Progress.note(1)
        report.line(f"It could not be made again: {again.result.get('reason')}")
        return
    found = compare_again(before, again, neighbours(folder))
    tell(before, again, found, surroundings(before, again), report)
    if found.word in ("different", "not the same bits"):
        Progress.note(1)


def read_made(experiment: Path, before: Run) -> Run:
    """The run that was made again: of the same seed and config, under the id that its source gives it."""
    from bitexp.report.runs import NoRuns, read_runs
    from bitexp.report.sameness import setting

    with contextlib.suppress(NoRuns, UserError):
        runs, _ = read_runs([experiment])
        same = [run for run in runs if run.seed == before.seed and alike(setting(run), setting(before))]
        if same:
            return max(same, key=lambda run: str(run.result.get("ended")))
    raise UserError(f"{path_text(experiment)} has no run like {before.id} afterwards")


def alike(one: dict[str, object], other: dict[str, object]) -> bool:
    """Whether two configs agree in what both have."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def neighbours(folder: Path) -> list[Run]:
    """The finished runs beside a run."""
    from bitexp.report.runs import read_runs

    runs, _ = read_runs([folder.parent])
    return [run for run in runs if run.finished]


@contextlib.contextmanager
def source(run: Run, options: argparse.Namespace, report: Report) -> Iterator[Path | None]:
    """A checkout of a run's commit, which is gone afterwards; None for the source as it is here."""
    from bitexp.config.paths import PACKAGE
    from bitexp.track.checkout import DIFF, checkout, git
    from bitexp.track.provenance import source_fingerprint

    diff = run.path / DIFF
    same = run.attempt.get("source") == source_fingerprint()
    commit = str((run.attempt.get("git") or {}).get("commit", ""))
    top = checkout(PACKAGE)
    if options.source == "now" or (same and not options.uncommitted):
        report.line("source     as it is here" + ("" if same else ", which is another than that of the run"))
        yield None
        return
    try:
        if top is None or not commit:
            raise OSError("the run was made outside of a checkout, or this is none")
        git(top, "cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.SubprocessError):
        raise UserError(
            f"the source of this run is not here: git has no commit {commit[:10] or 'for it'}. --source now "
            "makes it with the source as it is"
        ) from None
    with tempfile.TemporaryDirectory(prefix="bitexp-") as scrap:
        place = Path(scrap) / "source"
        git(top, "worktree", "add", "--detach", str(place), commit, seconds=CHECKOUT)
        try:
            if diff.is_file():
                if not options.uncommitted:
                    report.sentences(
                        f"The run had changes that were not committed: {path_text(diff)}. Look at them, and "
                        "give --uncommitted to have them applied."
                    )
                else:
                    apply(diff, place, commit)
            changed = " with its uncommitted changes" if options.uncommitted and diff.is_file() else ""
            report.line(f"source     commit {commit[:10]}{changed}")
            yield place
        finally:
            git(top, "worktree", "remove", "--force", str(place))


def apply(diff: Path, place: Path, commit: str) -> None:
    """Applies what was not committed to a checkout. Raises `UserError` where it does not fit."""
    from bitexp.track.checkout import LIMIT, git

    try:
        git(place, "apply", "--whitespace=nowarn", str(diff))
    except subprocess.CalledProcessError as problem:
        why = (problem.stderr.decode(errors="replace").strip() or "git refuses it").splitlines()[0]
        raise UserError(
            f"{path_text(diff)} cannot be applied to commit {commit[:10]}: {why}. It holds {LIMIT:,} bytes "
            "at most, and no secrets. Without --uncommitted the run is made by the commit alone"
        ) from None


def make(folder: Path, place: Path | None, out: Path) -> int:
    """Makes the run of a folder by the bitexp of a checkout; returns the exit code."""
    environment = {**os.environ, "BITEXP_OUTPUTS": str(out)}
    if place is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-c", AGAIN, str(folder)], env=environment, cwd=place or Path.cwd()
    )
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code
        except KeyboardInterrupt:
            continue  # it got the signal as well, saves a checkpoint and ends


def tell(before: Run, again: Run, found: Sameness, changed: Sequence[str], report: Report) -> None:
    """The answer."""
    report.line()
    report.line(f"{before.name}, seed {before.seed}: {found.word}.")
    report.line(f"  {before.headline}  {before.score:.6g} before, {again.score:.6g} again")
    if found.step is not None and found.values is not None:
        old, new = found.values
        report.line(f"  The first difference is at step {found.step}: {found.metric} {old:.9g} -> {new:.9g}.")
    elif found.word != "equal to the bit":
        report.line("  All metrics are the same; the packed files differ, or one is gone.")
    if found.band is not None:
        report.line(
            f"  One more seed lies between {found.band.low:.6g} and {found.band.high:.6g} with 95 %, by "
            f"{counted(found.band.seeds, 'seed')}."
        )
    elif found.word != "equal to the bit":
        report.line(
            "  There are fewer than three seeds of it here, so that nothing says how far seeds differ."
        )
    for line in changed:
        report.line(f"  made differently: {line}")
    report.line(f"Folder: {path_text(again.path)}")


def main(words: Sequence[str]) -> int:
    """`python -m bitexp reproduce`. Exit codes: 0 the same, 1 different, 2 bad input."""
    return run_program("reproduce", __doc__, add_arguments, reproduce, words)
