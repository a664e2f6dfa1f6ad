"""`python -m bitexp reproduce RUN`: the run again, by its own source or by this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bitexp.__main__
from bitexp.cli import reproduce
from bitexp.common.errors import Damaged, UserError
from bitexp.run import road
from tests.support.processes import Program
from tests.support.training import Train


@pytest.fixture
def call(in_process: Any) -> Program:
    """`python -m bitexp WORDS...` in this process."""
    program: Program = in_process(bitexp.__main__.main, "bitexp")
    return program


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the run in this process, as the other would."""

    def make(folder: Path, place: Path | None, out: Path) -> int:
        assert place is None
        with monkeypatch.context() as patch:
            patch.setenv("BITEXP_OUTPUTS", str(out))
            patch.setattr(sys, "argv", ["-c", str(folder)])
            with pytest.raises(SystemExit) as ended:
                exec(reproduce.AGAIN, {})
        code = ended.value.code
        return 1 if isinstance(code, str) else int(code or 0)

    monkeypatch.setattr(reproduce, "make", make)


@pytest.mark.usefixtures("_here")
def test_a_run_of_this_source_is_equal_to_the_bit(call: Program, train: Train) -> None:
    folder = train("seed=3").folder
    for _ in range(2):  # what lies there from before is made anew
        said = call("reproduce", folder)
        assert said.code == 0, said.err
        assert "seed 3: equal to the bit." in said.out
    again = folder.parent.parent / "reproduced" / folder.parent.name / folder.name
    assert (again / "packed.safetensors").read_bytes() == (folder / "packed.safetensors").read_bytes()


@pytest.mark.usefixtures("_here")
def test_a_difference_is_told_with_its_first_step(call: Program, train: Train) -> None:
    folder = train("seed=3", "trainer.log_every=1").folder
    lines = (folder / "metrics.csv").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("2,") and "train/loss" in line)
    lines[place] = lines[place].rpartition(",")[0] + ",0.125"
    (folder / "metrics.csv").write_text("\n".join([*lines, ""]))
    said = call("reproduce", folder, "--source", "now")
    assert said.code == 1
    assert "not the same bits" in said.out
    assert "The first difference is at step 2: train/loss 0.125 -> " in said.out


def test_a_source_that_is_not_here_is_told(call: Program, train: Train) -> None:
    folder = train().folder
    record = json.loads((folder / "provenance.json").read_text())
    record["attempts"][-1] |= {"source": "other", "git": {"commit": "0" * 40, "dirty": False}}
    (folder / "provenance.json").write_text(json.dumps(record))
    said = call("reproduce", folder)
    assert said.code == 2
    assert "git has no commit 0000000000. --source now makes it with the source as it is" in said.err
    assert call("reproduce", folder / "nowhere").code == 2


def test_what_keeps_a_run_from_being_made_again_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where its data are on another machine."""

    def refuse(*_: Any) -> None:
        raise Damaged("there are no data")

    for name in ("config.yaml", "overrides.yaml"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(road, "run", refuse)
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        exec(reproduce.AGAIN, {})
    assert ended.value.code == "bitexp: there are no data"


def test_changes_that_do_not_apply_are_told(tmp_path: Path) -> None:
    (tmp_path / "uncommitted.diff").write_text("--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-one\n+two\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    with pytest.raises(UserError, match=r"cannot be applied to commit 0123456789: error: x\.py"):
        reproduce.apply(tmp_path / "uncommitted.diff", tmp_path, "0123456789abcdef")


@pytest.mark.slow
def test_a_run_of_a_commit_is_made_by_its_source(call: Program, train: Train) -> None:
    """By a checkout that is gone afterwards."""
    top = Path(bitexp.__file__).parents[1]
    folder = train("seed=1").folder
    commit = subprocess.run(
        ["git", "-C", top, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    record = json.loads((folder / "provenance.json").read_text())
    record["attempts"][-1] |= {"source": "other", "git": {"commit": commit, "dirty": False}}
    (folder / "provenance.json").write_text(json.dumps(record))
    (folder / "uncommitted.diff").unlink(missing_ok=True)
    said = call("reproduce", folder)
    assert said.code == 0, said.out + said.err
    assert f"source     commit {commit[:10]}" in said.out
    assert "equal to the bit." in said.out
    listed = subprocess.run(
        ["git", "-C", top, "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert "bitexp-" not in listed.stdout
