"""Makes what is missing, piece by piece: multiruns that can be stopped and continued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from bitexp.claims.cells import Cell, commands
from bitexp.claims.plan import Part, Plan
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.exit import Progress
from bitexp.common.format import counted, duration

PIECE = 600.0
"""Seconds of runs, about, between two looks at what is finished."""
PLAIN = ("logger=csv", "callbacks.checkpoint.keep=none", "~hydra.callbacks.summary")
"""What changes no result: thousands of runs are to leave and to say little."""


def make(
    plan: Plan,
    further: Sequence[str],
    report: Report,
    after: Callable[[], None],
    runs: int | None = None,
    hours: float | None = None,
    config_dir: Path | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Makes runs in the order of the file until none is missing or the budget is spent.

    Args:
        further: words for Hydra, such as a launcher; after: called after each piece, when new runs are known;
            runs, hours: the budget; only: the questions whose runs are made, None for all.

    Raises:
        UserError: not one run of a piece could be made.
    """
    began, made = time.monotonic(), 0
    tried = set[tuple[str, ...]]()
    while True:
        left = None if runs is None else runs - made
        rest = None if hours is None else hours * 3600 - (time.monotonic() - began)
        parts = [part for part in plan.parts if only is None or part.key in only]
        part, cells = piece(parts, tried, left, rest)
        if part is None:
            return
        tried |= {cell.typed for cell in cells}
        report.line()
        report.line(f"{part.key}: {counted(len(cells), 'run')}, about {duration(part.seconds * len(cells))}")
        for words in commands((*plan.resolved(cell.words), f"seed={cell.seed}") for cell in cells):
            code = launch(words, [*margin_words(part), *further], config_dir)
            plan.look()
            after()
            if code >= 128:
                Progress.note(code)
                return
            if code == 2:
                raise UserError(f"the runs of {part.key} cannot be made: {' '.join(words)}")
            if code:
                Progress.note(code)
        made += len(cells)


def margin_words(part: Part) -> list[str]:
    """What has runs keep the margin that they are judged by."""
    return [] if part.margin is None else [f"report.margin={part.margin!r}"]


def piece(
    parts: Sequence[Part], tried: set[tuple[str, ...]], runs: int | None, seconds: float | None
) -> tuple[Part | None, list[Cell]]:
    """The next runs of one question that were not tried yet, as many as fit into a piece and the budget."""
    for part in parts:
        waiting = [cell for cell in part.missing if cell.typed not in tried]
        room = PIECE if seconds is None else min(PIECE, seconds)
        most = max(1, int(room / part.seconds))
        cells = waiting[: most if runs is None else min(most, runs)]
        if cells:
            return (part, cells) if seconds is None or seconds > 0 else (None, [])
        if waiting:
            return None, []
    return None, []


def launch(words: Sequence[str], further: Sequence[str], config_dir: Path | None) -> int:
    """A multirun in a process of its own; returns its exit code, 128 and more where it was stopped.

    Ctrl-C reaches it by itself, and SIGTERM is handed on: runs save a checkpoint and end.
    """
    where = [] if config_dir is None else ["--config-dir", str(config_dir)]
    command = [sys.executable, "-m", "bitexp", "-m", *where, *words, *PLAIN, *further]
    process = subprocess.Popen(command)

    def hand_on(number: int, frame: object) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue  # it got the signal as well
    finally:
        signal.signal(signal.SIGTERM, before)
    return 128 - code if code < 0 else code
