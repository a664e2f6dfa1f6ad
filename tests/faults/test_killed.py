"""Killed at any moment, a run continues to the bit."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitexp.track.checkpoint_files import PREVIOUS, load_checkpoint
from bitexp.track.folder import RunFolder
from tests.support.configs import SMALL
from tests.support.faults import EVERY_STEP, VARIANTS, Undisturbed, assert_same, at, send
from tests.support.processes import Command, Start, bitexp_command
from tests.support.training import Train

MOMENTS = [
    ("on_train_batch_start", 1),
    ("on_train_batch_end", 1),
    ("on_train_batch_end", 4),
    ("on_validation_end", 1),
    ("on_train_epoch_end", 1),
    ("on_train_batch_start", 5),
    ("on_train_batch_end", 7),
    ("on_train_epoch_end", 2),
    *(pytest.param("on_train_batch_end", count, marks=pytest.mark.slow) for count in (2, 3, 5, 6, 8)),
    pytest.param("on_validation_start", 1, marks=pytest.mark.slow),
    pytest.param("on_validation_end", 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("hook", "count"), MOMENTS)
def test_killed_at_any_moment_a_run_ends_as_if_nothing_had_happened(
    hook: str, count: int, command: Command, train: Train, undisturbed: Undisturbed
) -> None:
    ended = command(*SMALL, EVERY_STEP, first=at(hook, count, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL
    outcome = train()
    resumed = "resumes    from last.ckpt" in (outcome.folder / "train.log").read_text()
    assert resumed == ((hook, count) != ("on_train_batch_start", 1))
    assert_same(outcome.folder, undisturbed("plain"))


@pytest.mark.parametrize(
    ("count", "after"),
    [
        *((count, False) for count in range(2, 7)),
        *(pytest.param(count, True, marks=pytest.mark.slow) for count in range(1, 7)),
    ],
)
def test_killed_while_a_checkpoint_is_written(
    count: int, after: bool, command: Command, train: Train, undisturbed: Undisturbed
) -> None:
    def arrange_kill() -> None:
        replace, left = os.replace, [count]

        def replace_or_die(source: Any, target: Any) -> None:
            left[0] -= str(target).endswith(".ckpt")
            if left[0] == 0 and not after:
                send(signal.SIGKILL)
            replace(source, target)
            if left[0] == 0:
                send(signal.SIGKILL)

        os.replace = replace_or_die

    words = VARIANTS["best"]
    assert command(*SMALL, *words, first=arrange_kill).code == -signal.SIGKILL
    outcome = train(*words)
    assert_same(outcome.folder, undisturbed("best"))


def test_killed_from_outside(start: Start, train: Train, outputs: Path, undisturbed: Undisturbed) -> None:
    process = start(bitexp_command((*SMALL, *VARIANTS["long"], EVERY_STEP)))
    while not list(outputs.glob("*/*/checkpoints/previous.ckpt")):
        assert process.runs(), process.wait()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    ended = process.wait()
    assert ended.code == -signal.SIGKILL
    assert ended.out.startswith("bitexp · first_steps · ternary_mean · seed 0")
    assert ended.err == ""
    (folder,) = (path.parent for path in outputs.glob("*/*/checkpoints"))
    assert not (folder / "result.json").exists()
    assert 0 < load_checkpoint(folder / "checkpoints" / PREVIOUS)["global_step"] < 80
    outcome = train(*VARIANTS["long"])
    assert outcome.folder == folder
    assert "resumes    from " in (folder / "train.log").read_text()
    assert_same(folder, undisturbed("long"))


@pytest.mark.slow
def test_a_grid_that_is_killed_twice_runs_every_cell_once(command: Command, outputs: Path) -> None:
    words = ("-m", *SMALL, "+sweeps=lr_weight_decay", "quantizer=binary")
    words += ("optimizer.lr=0.01,0.03", "optimizer.weight_decay=0.0,0.1")

    def die_as_run_begins(number: int) -> None:
        begin, left = RunFolder.begin, [number]

        def begin_or_die(*arguments: Any) -> None:
            begin(*arguments)
            left[0] -= 1
            if left[0] == 0:
                send(signal.SIGKILL)

        RunFolder.begin = begin_or_die  # type: ignore[method-assign]

    for number in (2, 2):
        assert command(*words, first=partial(die_as_run_begins, number)).code == -signal.SIGKILL
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert "4 jobs: 2 trained, 2 finished before, 0 not finished" in ended.out
    assert "each row is its best setting by validation" in ended.out
    provenance = [json.loads(path.read_text()) for path in outputs.glob("*/*/provenance.json")]
    assert sorted(len(run["attempts"]) for run in provenance) == [1] * 2 + [2] * 2
