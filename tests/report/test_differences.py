"""`report diff`: what two runs differ in, and what is said where there is nothing to compare."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexp.report import command
from bitexp.report.differences import Difference, differences
from bitexp.report.runs import Run, read_run
from tests.support.run_folders import WriteRun


def read(path: Path) -> Run:
    run = read_run(path)
    assert isinstance(run, Run)
    return run


def curve(path: Path, *values: float) -> None:
    lines = [f"{step},0,train/loss,{value}\n" for step, value in enumerate(values, 1)]
    (path / "metrics.csv").write_text("step,epoch,metric,value\n" + "".join(lines))


def test_every_part_says_what_differs(write_run: WriteRun) -> None:
    other = {"threads": 2, "data": "e", "versions": {"torch": "2.14.0"}, "code": {"quantizer": "abc"}}
    first = write_run("binary", 0, 0.9)
    second = write_run("binary", 1, 0.8, made=other, result={"files": {"packed.safetensors": "f" * 64}})
    curve(first, 3.0, 2.0, 1.0, 0.5)
    curve(second, 3.0, 2.5, 2.0, 0.25)
    found = differences(read(first), read(second))
    assert found["config"] == [Difference("seed", 0, 1)]
    assert found["data"] == [Difference("fingerprint", "d", "e")]
    assert found["code"] == [Difference("quantizer.code", None, "abc")]
    assert found["environment"] == [
        Difference("threads", 1, 2),
        Difference("versions.torch", "2.13.0", "2.14.0"),
    ]
    assert Difference("test/accuracy", 0.9, 0.8, "-0.1") in found["metrics"]
    assert [one.name for one in found["metrics"]] == ["test/accuracy", "test_packed/accuracy"]
    assert found["curves"] == [Difference("train/loss", 0.5, 0.25, "from step 2 on; furthest apart at 3: 1")]
    assert found["files"] == [Difference("packed.safetensors", None, "f" * 10)]


def test_what_changes_no_result_is_marked(write_run: WriteRun) -> None:
    first, second = write_run("full"), write_run("full", trainer__log_every=7, data__limit=9)
    notes = {one.name: one.note for one in differences(read(first), read(second))["config"]}
    assert notes == {"trainer.log_every": "not in the id", "data.limit": ""}


def test_a_curve_that_ended_early_or_is_missing(write_run: WriteRun) -> None:
    first, second, third = (write_run() for _ in range(3))
    curve(first, 3.0, 2.0)
    curve(second, 3.0, 2.0, 1.0)
    (early,) = differences(read(first), read(second))["curves"]
    assert (early.second, early.note) == (1.0, "the same up to step 2")
    curve(third, 3.0)
    (early,) = differences(read(second), read(third))["curves"]
    assert early.note == "the same up to step 1"
    (third / "metrics.csv").unlink()
    (missing,) = differences(read(first), read(third))["curves"]
    assert (missing.first, missing.second, missing.note) == (2.0, None, "only in the first run")


def test_the_command_prints_parts_and_what_agrees(
    write_run: WriteRun, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run("full", 0)
    write_run("full", 1, folder=outputs / "elsewhere" / "one")
    assert command.main(["diff", str(first), str(outputs / "elsewhere")]) == 0
    said = capsys.readouterr().out
    assert "made_up · full · seed 1 · finished" in said
    assert "seed" in said
    assert "The same: data, code, environment, metrics, curves, files." in said
    copy = shutil.copytree(first, outputs / "copy")
    assert command.main(["diff", str(first), str(copy)]) == 0
    assert "The same: config, data," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (lambda outputs: outputs, "holds several runs: name one of"),
        (lambda outputs: outputs / "none", "does not exist: name the folder of a run"),
        (lambda outputs: outputs / "empty", "holds no run"),
    ],
)
def test_what_is_no_run_is_refused(
    path: Callable[[Path], Path], reason: str, write_run: WriteRun, outputs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    first = write_run()
    write_run()
    (outputs / "empty").mkdir()
    assert command.main(["diff", str(first), str(path(outputs))]) == 2
    assert reason in capsys.readouterr().err
