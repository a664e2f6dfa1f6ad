"""Jobs in turn: one that waits for a run of another process lets the others go first, and holds no place."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from bitexp.common.files import write_json
from bitexp.run.chain import Waiting
from bitexp.sweep.turns import WAITING, Turns, is_made
from bitexp.track.folder import RunFolder


def owned(folder: Path, pid: int, host: str = socket.gethostname()) -> Path:
    """A run that a process is said to make."""
    place = folder.parent / ".locks" / f"{folder.name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, {"pid": pid, "host": host})
    return folder


def finish(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    verdict = {"status": "failed", "kind": "crash", "reason": "", "source": "s", "seconds": 1.0}
    RunFolder(folder).finish(verdict)


def test_the_word_for_it_is_one() -> None:
    assert Waiting.kind == WAITING


def test_jobs_come_in_their_order_and_who_waits_comes_after_the_others(tmp_path: Path) -> None:
    folder = owned(tmp_path / "run", os.getpid())
    turns = Turns([(0, ["a"]), (1, ["b"]), (2, ["c"])])
    first = turns.take()
    assert first is not None
    turns.put_back(first, folder)
    assert [turns.take(), turns.take()] == [(1, ["b"]), (2, ["c"])]
    threading.Timer(0.2, finish, [folder]).start()
    assert turns.take() == first
    assert turns.take() is None


def test_when_all_are_to_stop_nobody_waits(tmp_path: Path) -> None:
    turns = Turns([(0, ["a"])], stopping=lambda: True)
    job = turns.take()
    assert job is not None
    turns.put_back(job, owned(tmp_path / "run", os.getpid()))
    assert turns.take() == job


def test_a_run_is_made_until_it_has_a_verdict_or_its_process_is_gone(tmp_path: Path) -> None:
    assert not is_made(tmp_path / "nobody")
    assert is_made(owned(tmp_path / "living", os.getpid()))
    assert not is_made(owned(tmp_path / "dead", 2**22 + 7))
    assert is_made(owned(tmp_path / "elsewhere", 2**22 + 7, host="another"))
    finish(owned(tmp_path / "ended", os.getpid()))
    assert not is_made(tmp_path / "ended")
