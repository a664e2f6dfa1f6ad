"""Killed and continued: whatever is random, averaged or read from text."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.faults import EVERY_STEP, RANDOM, VARIANTS, Undisturbed, assert_same, at, base
from tests.support.processes import Command
from tests.support.training import Train

KINDS = ("random", "accumulate", "ema", "bf16", "learned", "stages", "methods", "levels")
"""One for each kind of state: generators, sums, averages, rounding, what is learned, what follows time."""
REPEATED = [name for name in RANDOM if name not in KINDS]


@pytest.mark.parametrize(
    ("variant", "hook", "count"),
    [
        *((name, "on_train_batch_end", 6) for name in KINDS),
        *(pytest.param(name, "on_train_batch_end", 6, marks=pytest.mark.slow) for name in REPEATED),
        pytest.param("patience", "on_train_epoch_end", 1, marks=pytest.mark.slow),
        ("patience", "on_train_epoch_end", 2),
        ("two_stage", "on_train_epoch_end", 1),
        *(pytest.param(name, "on_train_epoch_end", 1, marks=pytest.mark.slow) for name in RANDOM),
        pytest.param("two_stage", "on_train_epoch_end", 2, marks=pytest.mark.slow),
    ],
)
def test_whatever_is_random_or_averaged_continues_to_the_bit(
    variant: str, hook: str, count: int, command: Command, train: Train, undisturbed: Undisturbed
) -> None:
    words = VARIANTS[variant]
    every = "callbacks.checkpoint.every_steps=3" if variant == "accumulate" else EVERY_STEP
    expected = undisturbed(variant)
    ended = command(*base(variant), *words, every, first=at(hook, count, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL, ended.err
    outcome = train(*words, base=base(variant))
    assert outcome.result["reason"] is None
    assert "resumes    from last.ckpt" in (outcome.folder / "train.log").read_text()
    assert_same(outcome.folder, expected)


@pytest.mark.parametrize(
    "count", [2, 5, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 3, 4))]
)
def test_a_language_model_killed_at_any_step_continues_to_the_bit(
    count: int, command: Command, train: Train, undisturbed: Undisturbed
) -> None:
    words = VARIANTS["text_continual"]
    ended = command(*base("text"), *words, EVERY_STEP, first=at("on_train_batch_end", count, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL, ended.err
    outcome = train(*words, base=base("text"))
    assert "resumes    from last.ckpt" in (outcome.folder / "train.log").read_text()
    assert_same(outcome.folder, undisturbed("text_continual"))


def test_data_that_changed_before_the_first_checkpoint_are_no_matter(
    command: Command, train: Train, tmp_path: Path
) -> None:
    """As after a damaged file was mended: nothing is lost."""
    text = tmp_path / "book.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 100)
    words = ("data=text", f"data.files=[{text}]")
    ended = command(*base("text"), *words, first=at("on_train_batch_end", 1, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL, ended.err
    text.write_text(text.read_text().replace("best", "Best"))
    assert train(*words, base=base("text")).status == "finished"


def test_text_that_changed_meanwhile_is_told_and_nothing_is_lost(
    command: Command, train: Train, tmp_path: Path, outputs: Path
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 100)
    words = ("data=text", f"data.files=[{text}]")
    ended = command(*base("text"), *words, EVERY_STEP, first=at("on_train_batch_end", 3, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL, ended.err
    (folder,) = (path.parent for path in outputs.glob("*/*/config.yaml"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    original = text.read_text()
    text.write_text(original.replace("best", "Best"))
    ended = command(*base("text"), *words)
    assert ended.code == 2
    assert "the data have changed since this run was started in" in ended.err
    assert folder.name in ended.err
    assert "use rerun=true to start a new run on the data as they are now" in ended.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    new = train(*words, "rerun=true", base=base("text"))
    assert new.folder != folder
    text.write_text(original)
    continued = train(*words, base=base("text"))
    assert continued.folder == folder
    assert "resumes    from last.ckpt" in (folder / "train.log").read_text()
