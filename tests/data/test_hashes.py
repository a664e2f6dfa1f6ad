"""Hashes of files: read once, and again where anything changed; every file that cannot be used is told."""

import os
import threading

import pytest

from bitexp.common.errors import UserError
from bitexp.data import hashes as module
from bitexp.data.cache import cache_folder
from bitexp.data.hashes import content_hashes, hash_file

NAMES = [f"{number}.txt" for number in range(5)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Five files, old enough for their hashes to be kept in a cache of their own."""
    monkeypatch.setenv("BITEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "FRESH", 0)
    (tmp_path / "root").mkdir()
    for name in NAMES:
        (tmp_path / "root" / name).write_text(f"file {name}")
    return tmp_path / "root"


@pytest.fixture
def seen(root):
    """Hashes of the files, and the names of those that were read for it."""

    def look(names=NAMES, unit="files"):
        read = []
        hashes = content_hashes(root, names, unit, lambda path: read.append(path.name))
        assert hashes == [hash_file(root / name) for name in names]
        return sorted(read)

    return look


def test_files_are_read_once(seen):
    assert seen() == NAMES
    assert seen() == []
    assert seen(NAMES[::-2]) == []
    assert seen(unit="images") == NAMES  # another check


def test_a_changed_file_is_read_again(root, seen):
    seen()
    times = (root / "1.txt").stat()
    (root / "1.txt").write_text("file 9.txt")  # as long as before
    os.utime(root / "1.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(root / "2.txt", ns=(0, 0))
    (root / "new").write_text("other 3.txt")
    os.replace(root / "new", root / "3.txt")
    assert seen() == ["1.txt", "2.txt", "3.txt"]
    assert seen() == []


def test_the_hash_of_a_file_that_is_being_written_is_not_kept(seen, monkeypatch):
    monkeypatch.setattr(module, "FRESH", 3_600_000_000_000)
    assert seen() == seen() == NAMES


def test_every_part_adds_to_what_is_kept_and_files_that_are_gone_leave(root, seen):
    seen(NAMES[:2])
    assert seen(NAMES[2:]) == NAMES[2:]
    assert seen() == []
    (root / "0.txt").unlink()
    (root / "1.txt").write_text("another text")
    assert seen(NAMES[1:]) == ["1.txt"]
    (record,) = (cache_folder() / "hashes").glob("*.json")
    assert "0.txt" not in record.read_text()


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("1.txt", "7.txt"), lambda text: "[]"]
)
def test_a_damaged_record_is_made_again(seen, damage):
    seen()
    (record,) = (cache_folder() / "hashes").glob("*.json")
    record.write_text(damage(record.read_text()))
    assert seen() == NAMES
    assert seen() == []


def test_all_files_that_cannot_be_used_are_told_and_the_others_are_kept(root, seen, monkeypatch):
    monkeypatch.setattr(module, "TOLD", 3)
    (root / "gone.txt").symlink_to("nowhere")
    (root / "folder.txt").mkdir()

    def check(path):
        if path.name in ("1.txt", "3.txt"):
            raise UserError(f"{path.name} is no good")

    with pytest.raises(UserError) as caught:
        content_hashes(root, ["gone.txt", "folder.txt", *NAMES], "files", check)
    assert str(caught.value).splitlines() == [
        f"{root}/gone.txt cannot be read (No such file or directory)",
        f"{root}/folder.txt cannot be read (Is a directory)",
        "1.txt is no good",
        "and 1 more",
    ]
    assert seen() == ["1.txt", "3.txt"]


def test_what_was_read_stays_when_it_is_stopped(root, seen, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)

    def check(path):
        if path.name == "3.txt":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        content_hashes(root, NAMES, "files", check)
    assert not {"0.txt", "1.txt"} & set(seen())


def test_without_a_place_to_keep_them_hashes_are_made_each_time(root, seen, monkeypatch):
    monkeypatch.setenv("BITEXP_CACHE", str(root / "0.txt" / "below a file"))
    assert seen() == seen() == NAMES


def test_one_reads_and_the_others_wait(root):
    read = []
    work = [
        threading.Thread(target=content_hashes, args=(root, NAMES, "files", lambda path: read.append(path)))
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(read) == len(NAMES)
