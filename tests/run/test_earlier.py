"""What becomes of what is there of a run: it stands, is mended, continues, or makes way for a repetition."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.deploy import load_run
from bitexp.track.folder import RunFolder
from tests.support.configs import SMALL
from tests.support.faults import EVERY_STEP, at
from tests.support.processes import Command
from tests.support.training import Train


def replaced(folder: Path) -> list[Path]:
    """The runs that made way."""
    return sorted(folder.parent.glob(".replaced/*"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def change(path: Path, **values: Any) -> None:
    """Other values for some keys of a JSON file, or of the attempts in provenance.json."""
    content = json.loads(path.read_text())
    for record in content.get("attempts", [content]):
        record |= values
    path.write_text(json.dumps(content))


# to be repeated


def test_a_rerun_that_was_killed_continues(command: Command, train: Train, capsys: Any) -> None:
    first = train()
    kill = at("on_train_batch_end", 6, signal.SIGKILL)
    assert command(*SMALL, "rerun=true", EVERY_STEP, first=kill).code == -signal.SIGKILL
    (aside,) = replaced(first.folder)
    again = train("rerun=true", report=Report())
    assert again.trained
    assert replaced(first.folder) == [aside], "it did not begin from zero"
    assert "resumes    from last.ckpt" in capsys.readouterr().out
    assert again.result["metrics"] == first.result["metrics"]
    train("rerun=true")
    assert len(replaced(first.folder)) == 2, "a finished one is repeated"


def test_a_run_that_was_killed_is_begun_anew_by_a_rerun(command: Command, train: Train) -> None:
    kill = at("on_train_batch_end", 6, signal.SIGKILL)
    assert command(*SMALL, EVERY_STEP, first=kill).code == -signal.SIGKILL
    outcome = train("rerun=true")
    assert len(replaced(outcome.folder)) == 1
    assert len(RunFolder(outcome.folder).attempts()) == 1


@pytest.mark.slow
def test_a_killed_rerun_without_a_whole_checkpoint_begins_anew(command: Command, train: Train) -> None:
    kill = at("on_train_batch_end", 6, signal.SIGKILL)
    assert command(*SMALL, "rerun=true", EVERY_STEP, first=kill).code == -signal.SIGKILL
    (last,) = Path(os.environ["BITEXP_OUTPUTS"]).glob("*/*/checkpoints/last.ckpt")
    for path in last.parent.glob("*.ckpt"):
        path.write_bytes(b"")
    outcome = train("rerun=true")
    assert outcome.status == "finished"
    assert len(replaced(outcome.folder)) == 1


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        ("result.json", {"source": "other"}, "bitexp"),
        ("provenance.json", {"source": "other"}, "bitexp"),
        ("provenance.json", {"versions": {"torch": "1.13.0"}}, "torch (1.13.0)"),
    ],
)
def test_older_repeats_what_other_versions_have_made(
    file: str, values: dict[str, Any], named: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train()
    assert not train("rerun=older").trained
    change(first.folder / file, **values)
    assert not train(report=Report()).trained
    said = " ".join(capsys.readouterr().out.split())
    assert f"This run was made by a different version of {named}. Use rerun=true to repeat it." in said
    assert train("rerun=older").trained
    assert len(replaced(first.folder)) == 1
    assert not train("rerun=older").trained


@pytest.mark.slow
def test_older_begins_anew_what_another_version_has_begun(command: Command, train: Train) -> None:
    kill = at("on_train_batch_end", 6, signal.SIGKILL)
    assert command(*SMALL, EVERY_STEP, first=kill).code == -signal.SIGKILL
    (file,) = Path(os.environ["BITEXP_OUTPUTS"]).glob("*/*/provenance.json")
    change(file, source="other")
    outcome = train("rerun=older")
    assert [attempt["source"] for attempt in RunFolder(outcome.folder).attempts()] != ["other"]
    assert len(replaced(outcome.folder)) == 1


def test_a_run_keeps_the_margin_that_it_began_with(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    first = train("report.margin=0.01")
    before = files(first.folder)
    assert RunFolder(first.folder).attempts()[0]["margin"] == 0.01
    assert not train("report.margin=0.01", report=Report()).trained
    assert "was set after" not in capsys.readouterr().out
    again = train("report.margin=0.02", report=Report())
    assert (again.trained, again.folder) == (False, first.folder)
    assert "report.margin=0.02 was set after this run, which began with 0.01." in capsys.readouterr().out
    assert files(first.folder) == before


# what a finished run promises


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("packed.safetensors", "gone"),
        ("packed.safetensors", "damaged"),
        ("model.json", "shortened"),
        ("metrics.csv", "damaged"),
        ("confusion_matrix.csv", "gone"),
        ("predictions.safetensors", "gone"),
        ("config.yaml", "shortened"),
    ],
)
def test_what_is_gone_or_damaged_is_made_again(
    name: str, fault: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train()
    before = files(first.folder)
    path = first.folder / name
    if fault == "gone":
        path.unlink()
    elif fault == "damaged":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(path.read_bytes()[:50])
    again = train(report=Report())
    said = " ".join(capsys.readouterr().out.split())
    what = "is missing" if fault == "gone" else "has changed since it was written"
    assert f"note {name} {what}: made again from the checkpoint" in said
    assert files(first.folder)[name] == before[name]
    assert again.result["metrics"] == first.result["metrics"]
    assert again.result["files"] == first.result["files"]
    assert not train().trained


def test_a_run_of_an_earlier_version_promises_its_packed_file(train: Train) -> None:
    first = train()
    result = json.loads((first.folder / "result.json").read_text())
    del result["files"]
    (first.folder / "result.json").write_text(json.dumps(result))
    assert not train().trained
    packed = first.folder / "packed.safetensors"
    before = packed.read_bytes()
    packed.unlink()
    train()
    assert packed.read_bytes() == before


def test_without_a_checkpoint_the_result_stands_and_what_is_missing_is_said(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train()
    for path in [first.folder / "packed.safetensors", *first.folder.glob("checkpoints/*")]:
        path.unlink()
    again = train(report=Report())
    assert (again.trained, again.result) == (False, first.result)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "packed.safetensors is missing; no checkpoint is left to make it from again. Use rerun=true" in said
    )


# whose checkpoints are not kept


def names(folder: Path) -> list[str]:
    """The checkpoints of a run."""
    return sorted(path.name for path in folder.glob("checkpoints/*"))


MONITOR = "callbacks.checkpoint.monitor=val/loss"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("callbacks.checkpoint.keep=best",), ["last.ckpt"]),
        (("callbacks.checkpoint.keep=best", MONITOR), ["best.ckpt"]),
        (("callbacks.checkpoint.keep=none", MONITOR), []),
    ],
)
def test_a_finished_run_keeps_the_checkpoints_it_was_told_to(
    words: tuple[str, ...], kept: list[str], train: Train
) -> None:
    """And is the same run otherwise, so that one that kept them all is thinned when it is asked for again."""
    first = train(*words)
    assert names(first.folder) == kept
    whole = train("rerun=true", *words[1:])
    assert (whole.folder, len(names(whole.folder))) == (first.folder, len(words) + 1)
    assert whole.result["files"].keys() == first.result["files"].keys()
    again = train(*words)
    assert (again.trained, again.result) == (False, whole.result)
    assert names(first.folder) == kept


def test_from_the_best_checkpoint_alone_all_files_are_made_again(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("callbacks.checkpoint.keep=best", MONITOR, "optimizer.lr=1.0", "trainer.epochs=4")
    first = train(*words)
    before = files(first.folder)
    for name in ("packed.safetensors", "metrics.csv"):
        (first.folder / name).unlink()
    again = train(*words, report=Report())
    assert "resumes from best.ckpt" in " ".join(capsys.readouterr().out.split())
    assert (again.trained, again.result["status"]) == (True, "finished")
    assert again.result["files"] == first.result["files"] | {
        "metrics.csv": again.result["files"]["metrics.csv"]
    }
    assert files(first.folder)["packed.safetensors"] == before["packed.safetensors"]
    assert names(first.folder) == ["best.ckpt"]


def test_without_any_what_is_missing_is_said(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    first = train("callbacks.checkpoint.keep=none")
    (first.folder / "packed.safetensors").unlink()
    assert not train("callbacks.checkpoint.keep=none", report=Report()).trained
    said = " ".join(capsys.readouterr().out.split())
    assert "packed.safetensors is missing; no checkpoint is left to make it from again" in said
    with pytest.raises(UserError, match=r"it is missing \(of finished runs those are kept that .*keep said"):
        load_run(first.folder, weights="last")


def test_an_unfinished_run_keeps_all(command: Command) -> None:
    stop = at("on_train_batch_end", 6, signal.SIGTERM)
    assert command(*SMALL, "callbacks.checkpoint.keep=none", EVERY_STEP, first=stop).code == 143
    (last,) = Path(os.environ["BITEXP_OUTPUTS"]).glob("*/*/checkpoints/last.ckpt")
    assert names(last.parent.parent) == ["last.ckpt", "previous.ckpt"]


# a tree that cannot be written


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes everything that writes below a folder fail as on a read-only file system."""

    def lock(folder: Path) -> None:
        opens = os.open

        def guarded(function: Any) -> Any:
            def call(path: Any, *args: Any, **options: Any) -> Any:
                writes = function is not opens or (args[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
                if writes and str(path).startswith(str(folder)):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return function(path, *args, **options)

            return call

        for name in ("open", "mkdir", "replace", "unlink"):
            monkeypatch.setattr(os, name, guarded(getattr(os, name)))

    return lock


def test_a_finished_run_is_recognized_where_nothing_can_be_written(
    train: Train, read_only: Any, outputs: Path
) -> None:
    first = train()
    read_only(outputs)
    again = train()
    assert (again.trained, again.result) == (False, first.result)
    with pytest.raises(
        UserError, match=r"first_steps cannot be written \(Read-only file system\).*BITEXP_OUTPUTS"
    ):
        train("seed=7")


def test_the_others_of_a_launch_recognize_it_too(
    train: Train, read_only: Any, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train()
    read_only(outputs)
    monkeypatch.setenv("RANK", "1")
    again = train()
    assert (again.trained, again.status) == (False, "finished")
    assert again.folder == first.folder


def test_what_is_over_takes_no_lock(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    monkeypatch.setattr(RunFolder, "acquire", lambda *_: pytest.fail("a lock was taken"))
    assert not train().trained
