"""What a job leaves behind: its exit code and its line in the index of a multirun."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf.errors import InterpolationKeyError

from bitexp.cli.job import JobRecord, check_distilled, describe_failure, exit_code
from bitexp.common.errors import UserError
from bitexp.common.files import read_json
from bitexp.config.schema import read_settings
from tests.support.configs import compose_config


def outcome(status: str, **result: Any) -> Any:
    parts = {"status": status, "kind": None, "reason": None, **result}
    return SimpleNamespace(status=status, result=parts, folder=Path("outputs/a/1"), trained=True)


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (outcome("finished"), 0),
        (outcome("pruned"), 0),
        (outcome("failed"), 1),
        (outcome("stopped", signal=2), 130),
        (outcome("stopped", signal=15), 143),
    ],
)
def test_exit_codes(ended: Any, code: int) -> None:
    assert exit_code(ended) == code


def test_a_record_says_which_run_it_was_and_how_it_ended(tmp_path: Path) -> None:
    ended = outcome("finished", metrics={"test/accuracy": 0.9}, headline="test/accuracy")
    record = JobRecord.of(ended, ["seed=1"], tuned=True)
    record.write(SimpleNamespace(sweep=SimpleNamespace(dir=tmp_path), job=SimpleNamespace(num=3)))
    assert read_json(tmp_path / "jobs" / "3.json") == asdict(record) == {
        "overrides": ["seed=1"],
        "tuned": True,
        "status": "finished",
        "kind": None,
        "reason": None,
        "run": "outputs/a/1",
        "trained": True,
        "metrics": {"test/accuracy": 0.9},
        "headline": "test/accuracy",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "kind", "reason"),
    [
        (UserError("no such data"), "config", "no such data"),
        (InterpolationKeyError("Interpolation key 'nowhere' not found"), "config", "Interpolation key"),
        (ZeroDivisionError("ours"), "crash", "ZeroDivisionError: ours"),
        (MemoryError(), "out_of_memory", "out of memory"),
    ],
)
def test_what_the_user_can_mend_is_told_from_a_crash(problem: Exception, kind: str, reason: str) -> None:
    failure = describe_failure(problem, [])
    assert failure["kind"] == kind
    assert failure["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (["distill.losses.hidden=1", "seed=1"], "distill.losses.hidden=1"),
        (["+distill.losses.hidden.weight=1"], "+distill.losses.hidden.weight=1"),
        (["distill.teacher_seed=1"], "distill.teacher_seed=1"),
        (["distill.losses.hidden=1", "distill.teacher=null"], None),  # as in a grid with and without one
        (["seed=1"], None),
    ],
)
def test_words_about_a_teacher_need_one(words: list[str], idle: str | None) -> None:
    settings = read_settings(compose_config())
    if idle is None:
        check_distilled(settings, words)
        return
    with pytest.raises(UserError) as refusal:
        check_distilled(settings, words)
    assert f"{idle} does nothing without a teacher: name one with distill.teacher=RUN" in str(refusal.value)
