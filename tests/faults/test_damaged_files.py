"""Files that are damaged or hostile: nothing in them is executed, and nothing whole is lost."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import bitexp.run.evaluate
from bitexp.common.console import Report
from bitexp.track.checkpoint_files import BEST, DAMAGED, LAST, PREVIOUS, STATE, damage, load_checkpoint
from bitexp.track.folder import RunFolder
from tests.support.configs import SMALL
from tests.support.faults import Undisturbed, assert_same, same
from tests.support.processes import Command
from tests.support.training import Train


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def poison(path: Path) -> None:
    torch.save({**load_checkpoint(path), "state_dict": Evil(path.with_name("executed"))}, path)


def poison_plainly(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(path.with_name("executed"))))


def replace_by_another(path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, path)


DAMAGE = [truncate, flip_a_bit, empty, poison, poison_plainly, replace_by_another]


@pytest.mark.parametrize("spoil", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    spoil: Callable[[Path], None],
    interrupted: Path,
    train: Train,
    undisturbed: Undisturbed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = interrupted
    spoil(folder / "checkpoints" / LAST)
    outcome = train(report=Report())
    said = capsys.readouterr().out
    assert "resumes    from previous.ckpt" in said
    assert "last.ckpt is damaged: it" in said
    assert not (folder / "checkpoints" / "executed").exists()
    assert (folder / "checkpoints" / DAMAGED).exists()
    assert_same(outcome.folder, undisturbed("plain"))


@pytest.mark.parametrize("spoil", [truncate, poison])
def test_without_a_whole_checkpoint_nothing_is_touched(
    spoil: Callable[[Path], None], interrupted: Path, command: Command, train: Train, undisturbed: Undisturbed
) -> None:
    folder = interrupted
    checkpoints = folder / "checkpoints"
    spoil(checkpoints / LAST)
    spoil(checkpoints / PREVIOUS)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = command(*SMALL)
    assert ended.code == 2
    assert "last.ckpt is damaged" in ended.err
    assert "previous.ckpt is damaged" in ended.err
    assert "Use rerun=true to start this run over" in ended.err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert_same(train("rerun=true").folder, undisturbed("plain"))
    kept = list(folder.parent.glob(".replaced/*/checkpoints/last.ckpt"))
    assert [path.read_bytes() for path in kept] == [before[folder / "checkpoints" / LAST]]


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(interrupted: Path) -> None:
    path = interrupted / "checkpoints" / LAST
    whole, content = path.read_bytes(), load_checkpoint(path)
    draw = random.Random(0)
    for position in [*draw.sample(range(len(whole)), 200), *range(len(whole) - 60, len(whole))]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        assert damage(path) is not None or same(load_checkpoint(path), content), position


def delete(path: Path) -> None:
    path.unlink()


def exchange(path: Path) -> None:
    """Puts the best weights of another seed there."""
    state = load_checkpoint(path)
    state["callbacks"][STATE] |= {"run": "another"}
    torch.save(state, path)


def put_back(path: Path) -> None:
    """Puts earlier weights of the same run there."""
    state = load_checkpoint(path)
    state["callbacks"][STATE]["best_step"] = state["global_step"] = 1
    torch.save(state, path)


SPOIL_BEST = [delete, truncate, flip_a_bit, exchange, put_back]


@pytest.fixture
def untested(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a run with further overrides that ends before it is tested; its checkpoints."""

    def make(*words: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(bitexp.run.evaluate, "evaluated", lambda *_: 1 / 0)
            outcome = train(*words)
        assert (outcome.status, outcome.result["kind"]) == ("failed", "crash")
        return outcome.folder / "checkpoints"

    return make


@pytest.mark.parametrize("spoil", SPOIL_BEST)
def test_a_best_checkpoint_that_is_not_what_was_written_is_made_again(
    spoil: Callable[[Path], None],
    untested: Callable[..., Path],
    train: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("callbacks.checkpoint.monitor=val/loss", "optimizer.lr=0.01")
    best = untested(*words) / BEST
    state = load_checkpoint(best)
    assert state["global_step"] == load_checkpoint(best.with_name(LAST))["global_step"]
    spoil(best)
    outcome = train(*words, report=Report())
    assert "best.ckpt was made again from last.ckpt: it" in capsys.readouterr().out
    assert outcome.result["weights"] == "best validation"
    assert same(load_checkpoint(best)["state_dict"], state["state_dict"])


@pytest.mark.parametrize("spoil", SPOIL_BEST)
def test_without_the_best_weights_nothing_is_tested(
    spoil: Callable[[Path], None], untested: Callable[..., Path], command: Command
) -> None:
    words = ("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=max", "trainer.epochs=4")
    best = untested(*words) / BEST
    assert load_checkpoint(best)["global_step"] == 4
    spoil(best)
    ended = command(*SMALL, *words)
    assert ended.code == 2
    assert "best.ckpt cannot be used: it" in ended.err
    assert "of step 4. Use rerun=true" in ended.err
    assert "step 16/16" not in ended.out


@pytest.mark.parametrize(
    "spoil", [empty, delete, lambda path: path.write_text(path.read_text() + "1,2,,3,4")]
)
def test_metrics_are_made_again_from_the_checkpoint(
    spoil: Callable[[Path], None], interrupted: Path, train: Train, undisturbed: Undisturbed
) -> None:
    spoil(interrupted / "metrics.csv")
    assert_same(train().folder, undisturbed("plain"))


def test_metrics_that_were_changed_are_made_again_and_said(
    interrupted: Path, train: Train, undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    path = interrupted / "metrics.csv"
    path.write_text(path.read_text().replace("train/loss,", "train/loss,,", 1))
    assert_same(train(report=Report()).folder, undisturbed("plain"))
    assert "metrics.csv did not hold what was measured" in capsys.readouterr().out


GARBAGE = [
    b"",
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b"{}",
    b'{"status": "finished"}',
    b'{"status": 3, "kind": []}',
]


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_in_result_json_counts_as_none(content: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "result.json").write_bytes(content)
    assert folder.result() is None


def test_garbage_in_a_run_folder_is_survived(
    interrupted: Path, train: Train, undisturbed: Undisturbed
) -> None:
    (interrupted / "result.json").write_bytes(b'{"status": "finished"}')
    (interrupted / "provenance.json").write_bytes(b'{"attempts": [1, null, {"versions": 3, "threads": "x"}]}')
    (interrupted / "config.yaml").write_bytes(b"!!python/object/apply:os.system [exit]")
    (interrupted / "overrides.yaml").write_bytes(b"\xff")
    assert_same(train().folder, undisturbed("plain"))
    attempts = json.loads((interrupted / "provenance.json").read_text())["attempts"]
    assert [attempt.get("pid") for attempt in attempts] == [None, os.getpid()]


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"attempts": 3}', b'{"attempts": [3, null]}'])
def test_garbage_in_provenance_json_is_no_attempt(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_bytes(content)
    assert RunFolder(tmp_path).attempts() == []


def test_a_resumption_under_other_conditions_says_so(
    interrupted: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["attempts"][-1] |= {"processor": "abacus", "versions": {"torch": "0.1"}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    train(report=Report())
    said = capsys.readouterr().out
    assert "processor abacus -> " in said
    assert f"torch 0.1 -> {metadata.version('torch')}" in said
