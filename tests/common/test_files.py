"""Files are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitexp.common.files import (
    NotPlain,
    open_for_appending,
    read_bytes,
    read_json,
    read_yaml,
    remove_scraps,
    write_atomic,
    write_json,
    write_yaml,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_scrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_scrap_of_a_killed_process_is_used_up(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(b"half of a long")
    write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_have_the_rights_that_other_files_get(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomic(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_and_yaml_come_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "ä"}
    write_json(tmp_path / "x.json", value)
    write_yaml(tmp_path / "x.yaml", value)
    assert read_json(tmp_path / "x.json") == read_yaml(tmp_path / "x.yaml") == value
    assert list(read_yaml(tmp_path / "x.yaml")) == ["b", "a"]
    assert "ä" in (tmp_path / "x.yaml").read_text()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[1,"])
def test_what_cannot_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_json(path) is None
    assert read_yaml(path) is None
    path.write_bytes(content)
    assert read_json(path) is None
    assert read_yaml(path) is None


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{path}.made]]"
    )
    assert read_yaml(path) is None
    assert not Path(f"{path}.made").exists()


def test_no_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "dear").write_text("dear")
    for name in (".ours.part", "ours", "log"):
        (tmp_path / name).symlink_to(tmp_path / "dear")
    os.link(tmp_path / "dear", tmp_path / ".other.part")
    write_atomic(tmp_path / "ours", b"new")
    write_atomic(tmp_path / "other", b"new")
    with pytest.raises(OSError, match="symbolic links"):
        open_for_appending(tmp_path / "log")
    assert (tmp_path / "dear").read_text() == "dear"
    assert not (tmp_path / "ours").is_symlink()


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(NotPlain, match="more than 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(NotPlain, match="no regular file"):
            read_bytes(path)
        assert read_json(path) is None
        assert read_yaml(path) is None


def test_what_killed_processes_have_left_goes_and_nothing_else(tmp_path: Path) -> None:
    names = (".old.json.part", ".young.json.part", ".link.part", "mine.part", ".hidden")
    (tmp_path / "target").write_text("kept")
    for name in names:
        path = tmp_path / name
        path.symlink_to(tmp_path / "target") if name == ".link.part" else path.touch()
        if "young" not in name:
            os.utime(path, (0, 0), follow_symlinks=False)
    remove_scraps(tmp_path)
    remove_scraps(tmp_path / "nowhere")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".young.json.part", "mine.part", ".hidden", "target"}
