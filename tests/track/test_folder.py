"""A run's folder: one process writes it, garbage in it is no result, a rerun loses nothing."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitexp.config.schema import Settings, read_settings
from bitexp.track import folder as folders
from bitexp.track.folder import FINISHED, RESULT, Busy, RunFolder, outputs


@pytest.fixture
def settings(compose_config: Any) -> Settings:
    return read_settings(compose_config())


def test_runs_lie_where_the_environment_says(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITEXP_OUTPUTS", str(tmp_path / "mine"))
    folder = RunFolder.of(settings, "data")
    assert folder.path == tmp_path / "mine" / "first_steps" / folder.id
    assert not folder.path.exists()
    monkeypatch.delenv("BITEXP_OUTPUTS")
    monkeypatch.chdir(tmp_path)
    assert outputs() == tmp_path / "outputs"
    monkeypatch.setenv("BITEXP_OUTPUTS", "")
    assert outputs() == tmp_path / "outputs"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.acquire()
    with pytest.raises(Busy, match=rf"already being run by process {os.getpid()} on {socket.gethostname()};"):
        second.acquire()
    assert not first.path.exists()
    first.release()
    second.acquire()
    second.release()


def test_a_dead_process_holds_no_lock(tmp_path: Path, start: Any) -> None:
    def take_and_die() -> None:
        RunFolder(tmp_path / "run").acquire()
        os._exit(3)

    assert start(take_and_die).wait().code == 3
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    folder.release()


def test_what_begins_is_written_and_an_old_verdict_goes(settings: Settings, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(settings, ["seed=0"], {"pid": 1})
    folder.finish(dict.fromkeys(RESULT, "x") | {"status": "failed", "seconds": 1})
    assert folder.result() is not None
    folder.begin(settings, ["seed=0"], {"pid": 2})
    assert folder.result() is None
    assert [attempt["pid"] for attempt in folder.attempts()] == [1, 2]
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == settings.model_dump(mode="json")
    assert yaml.safe_load((folder.path / "overrides.yaml").read_text()) == ["seed=0"]
    assert folder.checkpoints.is_dir()


def test_a_folder_set_aside_twice_in_a_second_is_kept_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders.time, "strftime", lambda _: "now")
    kept = []
    for number in range(3):
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir()
        (folder.path / "file").write_text(str(number))
        kept.append(folder.set_aside())
        assert not folder.path.exists()
    assert [(path / "file").read_text() for path in kept] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        3,
        {"status": "finished"},
        dict.fromkeys((*RESULT, *FINISHED), "x") | {"status": "finished", "metrics": 3},
        dict.fromkeys((*RESULT, *FINISHED), "x") | {"status": "finished", "metrics": {"y": 1}},
        dict.fromkeys(RESULT, "x") | {"status": "finished", "metrics": {"x": 1}, "headline": "x"},
    ],
)
def test_what_is_no_result(value: Any, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(value))
    assert RunFolder(tmp_path).result() is None


def test_no_file_is_no_result(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "nowhere").result() is None
    assert RunFolder(tmp_path / "nowhere").attempts() == []
