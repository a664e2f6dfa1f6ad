"""Run folders as values: found anywhere, read tolerantly."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitexp.common.errors import UserError
from bitexp.common.files import write_json
from bitexp.report.runs import Problem, Run, read_run, read_runs

Write = Callable[..., Path]


def read(path: Path) -> Run:
    run = read_run(path)
    assert isinstance(run, Run)
    return run


def test_a_run_is_what_its_files_say(write_run: Write) -> None:
    run = read(write_run("binary", 2, 0.75, validated=0.7, typed=["+experiment=x y"], optimizer__lr=0.5))
    assert (run.name, run.id, run.precision, run.seed) == ("made_up", "run0", "binary", 2)
    assert (run.status, run.score, run.validated) == ("finished", 0.75, 0.7)
    assert run.flat["optimizer.lr"] == 0.5
    assert run.flat["optimizer.betas"] == "[0.9, 0.999]"
    assert run.command == "python -m bitexp '+experiment=x y' quantizer=binary seed=2"
    assert run.span is not None
    assert (run.span[1] - run.span[0]).total_seconds() == 60


def test_a_real_run_is_read(train: Any) -> None:
    outcome = train("quantizer=binary")
    run = read(outcome.folder)
    assert run.metrics == outcome.result["metrics"]
    assert run.score == outcome.result["metrics"]["test/accuracy"]
    assert [step for step, _ in run.curves["val/accuracy"]] == [4, 8]
    assert run.attempt["git"] is None or run.attempt["git"]["commit"]


def test_runs_are_found_at_any_depth_and_beside_other_things(write_run: Write, tmp_path: Path) -> None:
    shared = tmp_path / "sent by a friend" / "deep" / "deeper"
    here = [write_run(seed=seed, folder=shared / f"{seed}") for seed in range(3)]
    (shared / ".replaced").mkdir()
    write_run(seed=7, folder=shared / ".replaced" / "old")
    (here[0] / "wandb" / "files").mkdir(parents=True)
    (here[0] / "wandb" / "files" / "config.yaml").write_text("wandb_version: 1")
    (shared / "note.txt").write_text("hello")
    runs, problems = read_runs([tmp_path / "sent by a friend", here[1]])
    assert [run.path for run in runs] == here
    assert problems == []


def test_of_copies_the_finished_one_counts(write_run: Write, tmp_path: Path) -> None:
    path = write_run()
    shutil.copytree(path, tmp_path / "copy" / path.name)
    (path / "result.json").unlink()
    runs, _ = read_runs([path.parent, tmp_path / "copy"])
    assert [(run.path, run.finished) for run in runs] == [(tmp_path / "copy" / path.name, True)]


def test_the_index_of_a_multirun_names_its_runs_wherever_they_are_now(
    write_run: Write, tmp_path: Path
) -> None:
    ours, other = write_run(seed=0), write_run(seed=1)
    sweep = ours.parent / "sweeps" / "now"
    (sweep / "jobs").mkdir(parents=True)
    write_json(sweep / "jobs" / "0.json", {"status": "finished", "run": f"/gone/{ours.name}"})
    failed = {"status": "failed", "overrides": ["seed=x"], "reason": "seed=x is no number"}
    write_json(sweep / "jobs" / "1.json", failed)
    (sweep / "jobs" / "2.json").write_text("{")
    runs, problems = read_runs([sweep])
    assert [run.path.resolve() for run in runs] == [ours]
    assert [problem.reason for problem in problems] == ["seed=x: failed: seed=x is no number"]
    assert other.exists()
    moved = tmp_path / "moved"
    shutil.move(ours.parent, moved)
    runs, _ = read_runs([moved / "sweeps" / "now"])
    assert len(runs) == 1


DAMAGES: dict[str, tuple[str, str, str]] = {
    "no config": ("config.yaml", "", "holds no config"),
    "half a config": ("config.yaml", "a: [", "cannot be read"),
    "code in a config": ("config.yaml", "a: !!python/object/apply:os.getcwd []", "cannot be read"),
    "a bomb": ("config.yaml", "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]", "YAML aliases"),
    "depth": ("config.yaml", "{a: " * 3000 + "1" + "}" * 3000, "cannot be read"),
    "more depth": ("config.yaml", "a: " + "[" * 200_000, "cannot be read"),
    "size": ("config.yaml", "a: 1\n" * 300_000, "more than 1,000,000 characters"),
    "a deep result": ("result.json", "[" * 200_000, "cannot be read"),
    "half a result": ("result.json", '{"status": "fini', "damaged"),
    "another result": ("result.json", "[]", "damaged"),
    "no number": (
        "result.json",
        json.dumps(
            {"status": "finished", "kind": None, "reason": None, "source": "s", "seconds": 1, "better": "max",
             "metrics": {"test/x": "high"}, "headline": "test/x", "lr_decay_sum": 0, "step_ms": 1}
        ),
        "no number for test/x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_listed_and_never_fatal(damage: str, write_run: Write) -> None:
    file, content, reason = DAMAGES[damage]
    broken, whole = write_run(seed=0), write_run(seed=1)
    (broken / file).write_text(content)
    runs, problems = read_runs([whole.parent])
    assert [run.path for run in runs] == [whole]
    assert problems[0].path == broken
    assert reason in problems[0].reason


def test_files_that_are_missing_or_of_other_types_leave_a_run_with_less(write_run: Write) -> None:
    path = write_run()
    (path / "provenance.json").write_text('{"attempts": [3, "x"]}')
    (path / "overrides.yaml").write_text("{a: 1}")
    (path / "metrics.csv").write_text(
        "step,epoch,metric,value\n1,0,val/x,0.5\nx,0,val/x,1\n2,0,val/x\n3,0,a,b,1\n"
    )
    run = read(path)
    assert (run.attempt, run.overrides, run.span) == ({}, (), None)
    assert run.curves == {"val/x": [(1, 0.5)], "a,b": [(3, 1.0)]}
    (path / "config.yaml").unlink()
    assert isinstance(read_run(path), Problem)


def test_a_run_without_a_result_is_unfinished(write_run: Write) -> None:
    path = write_run()
    (path / "result.json").unlink()
    assert read(path).status == "unfinished"


def test_what_is_no_place_for_runs_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path / "nowhere", "does not exist: name the folder"),
        (tmp_path / "file", "is a file: name the folder"),
        (tmp_path, r"looked for folders with a config\.yaml or a result\.json"),
    ):
        with pytest.raises(UserError, match=words):
            read_runs([path])


def test_a_link_back_up_is_not_followed(write_run: Write) -> None:
    path = write_run()
    os.symlink(path.parent, path.parent / "loop")
    assert len(read_runs([path.parent])[0]) == 1
