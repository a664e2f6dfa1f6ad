"""Several runs: one that fails does not stop the others, and no two processes make the same."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from bitexp.track.checkpoint_files import step_of
from tests.support.configs import SMALL
from tests.support.faults import EVERY_STEP, Undisturbed, arrange, assert_same
from tests.support.processes import Command, Start
from tests.support.training import Train


def test_one_failed_job_does_not_stop_the_others(command: Command, outputs: Path) -> None:
    ended = command("-m", *SMALL, "optimizer.lr=1e30,-1,0.01", "seed=0,1")
    assert ended.code == 1
    assert "6 jobs: 2 trained, 0 finished before, 4 not finished" in ended.out
    assert "failed: " in ended.out
    lines = [line.strip() for line in ended.out.splitlines() if line.startswith("  failed: ")]
    assert len(lines) == 2  # one for each reason
    assert "optimizer.lr=1e+30, seed=0; optimizer.lr=1e+30, seed=1: the training loss is nan" in lines[0]
    assert lines[1].endswith("optimizer.lr=-1 should be greater than 0")
    assert "Traceback" not in ended.err
    states = [json.loads(path.read_text())["status"] for path in outputs.glob("*/*/result.json")]
    assert sorted(states) == ["failed", "failed", "finished", "finished"]


def test_a_crash_before_the_run_does_not_stop_the_others(command: Command) -> None:
    def break_one() -> None:
        import bitexp.run.road

        build = bitexp.run.road.build

        def build_or_crash(settings: Any) -> Any:
            if settings.seed == 1:
                raise ZeroDivisionError("by seed 1")
            return build(settings)

        bitexp.run.road.build = build_or_crash

    ended = command("-m", *SMALL, "seed=0,1,2", first=break_one)
    assert ended.code == 1
    assert "3 jobs: 2 trained" in ended.out
    assert "ZeroDivisionError: by seed 1" in ended.out
    assert "Traceback" in ended.err


def test_of_two_processes_with_the_same_run_one_leaves(
    start: Start, command: Command, tmp_path: Path, undisturbed: Undisturbed, train: Train
) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"

    def wait() -> None:
        ready.touch()
        while not go.exists():
            time.sleep(0.01)

    def first() -> None:
        arrange("on_train_batch_start", 3, wait)
        assert train().status == "finished"

    running = start(first)
    while not ready.exists():
        time.sleep(0.01)
    second = command(*SMALL)
    assert second.code == 2
    assert f"is already being run by process {running.pid} on " in second.err
    assert "leaves it alone" in second.err
    go.touch()
    assert running.wait().code == 0
    again = train()
    assert not again.trained
    assert_same(again.folder, undisturbed("plain"))


def test_a_run_whose_lock_was_removed_writes_no_more(
    command: Command, outputs: Path, undisturbed: Undisturbed, train: Train
) -> None:
    """Whoever comes next may write there, and does it alone."""

    def remove() -> None:
        (locks,) = outputs.glob("*/.locks")
        shutil.rmtree(locks)

    ended = command(*SMALL, EVERY_STEP, first=lambda: arrange("on_train_batch_start", 4, remove))
    assert ended.code == 1
    assert "was removed while this process wrote there" in ended.err
    assert "Traceback" not in ended.err
    assert not list(outputs.glob("*/*/result.json"))
    (kept,) = outputs.glob("*/*/checkpoints/last.ckpt")
    assert step_of(kept) == 3
    assert_same(train(*SMALL).folder, undisturbed("plain"))
