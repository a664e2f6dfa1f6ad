"""What git knows of the source: its own repository and no other, and what is not committed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitexp.track import checkout as ours
from tests.support.extensions import forget_code

Git = Callable[..., str]


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What is remembered for the whole of a process is forgotten."""
    forget_code()
    yield
    forget_code()


def git_in(folder: Path) -> Git:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(folder), *identity, *words]
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()

    return git


def commit(folder: Path, **files: str) -> Git:
    """A repository with a commit of these files of its package."""
    git = git_in(folder)
    (folder / "package").mkdir(parents=True)
    git("init", "-q")
    for name, text in {"__init__": "", **files}.items():
        (folder / "package" / f"{name}.py").write_text(text)
    git("add", ".")
    git("commit", "-qm", "first")
    return git


def test_the_state_of_the_checkout(tmp_path: Path) -> None:
    assert ours.git_state(tmp_path) is None
    git, package = commit(tmp_path / "ours", file=""), tmp_path / "ours" / "package"
    assert ours.git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert ours.uncommitted(package) == ""
    (tmp_path / "ours" / "elsewhere").write_text("not of the package")
    ours.git_state.cache_clear()
    assert ours.git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "file.py").write_text("changed")
    ours.git_state.cache_clear()
    assert ours.git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


@pytest.mark.parametrize("names", [["GIT_DIR"], ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"]])
def test_the_environment_names_no_other_repository(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = commit(tmp_path / "ours", file="one\n")
    commit(tmp_path / "theirs", file="two\n", another="three\n")
    places = {"GIT_DIR": ".git", "GIT_WORK_TREE": ".", "GIT_INDEX_FILE": ".git/index"}
    for name in names:
        monkeypatch.setenv(name, str(tmp_path / "theirs" / places[name]))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    package = tmp_path / "ours" / "package"
    assert ours.git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "file.py").write_text("other\n")
    assert "-one\n+other\n" in ours.uncommitted(package)


def test_what_is_installed_within_another_checkout_is_not_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = commit(tmp_path)
    for place in ("ignored", "shared"):
        (tmp_path / place / "package").mkdir(parents=True)
        (tmp_path / place / "package" / "__init__.py").write_text("")
    (tmp_path / ".gitignore").write_text("ignored\n")
    git("add", ".gitignore")
    git("commit", "-qm", "second")
    assert ours.git_state(tmp_path / "ignored" / "package") is None
    monkeypatch.setattr(ours, "is_shared", lambda folder: folder == tmp_path / "shared")
    assert ours.git_state(tmp_path / "shared" / "package") is None
    assert ours.git_state(tmp_path / "package") is not None


def test_the_difference_is_kept_with_new_files_and_without_secrets(tmp_path: Path) -> None:
    commit(tmp_path / "ours", file="scale = 2\n", old="x = 1\n")
    package, run = tmp_path / "ours" / "package", tmp_path / "run"
    run.mkdir()
    assert ours.keep_uncommitted(run, [package]) == "nothing"
    assert not (run / ours.DIFF).exists()
    (package / "file.py").write_text("scale = 8\napi_key=verysecret\n")
    (package / "new.py").write_text("url = 'postgresql://me:verysecret@host/x'\n")
    (package / "data.bin").write_bytes(b"\0" * 100)
    ours.uncommitted.cache_clear()
    assert ours.keep_uncommitted(run, [package]) == ours.DIFF
    kept = (run / ours.DIFF).read_text()
    assert "-scale = 2\n+scale = 8\n+api_key=***" in kept
    assert "+++ b/package/new.py\n" in kept
    assert "verysecret" not in kept
    assert "data.bin" not in kept
    (package / "file.py").write_text("scale = 2\n")
    (package / "new.py").unlink()
    ours.uncommitted.cache_clear()
    assert ours.keep_uncommitted(run, [package]) == "nothing"
    assert not (run / ours.DIFF).exists(), "the difference of an earlier attempt"


def test_a_difference_is_patch_that_git_takes(tmp_path: Path) -> None:
    git, package = commit(tmp_path / "ours", file="a\n"), tmp_path / "ours" / "package"
    (package / "file.py").write_text("b\n")
    (package / "new.py").write_text("c\nd\n")
    ours.keep_uncommitted(tmp_path, [package])
    (package / "new.py").unlink()
    git("checkout", "-q", ".")
    git("apply", str(tmp_path / ours.DIFF))
    assert [(package / name).read_text() for name in ("file.py", "new.py")] == ["b\n", "c\nd\n"]


def test_a_large_difference_is_cut(tmp_path: Path) -> None:
    commit(tmp_path / "ours", file="")
    (tmp_path / "ours" / "package" / "file.py").write_text("é" * ours.LIMIT)
    assert ours.keep_uncommitted(tmp_path, [tmp_path / "ours" / "package"]) == ours.DIFF
    kept = (tmp_path / ours.DIFF).read_bytes()
    assert len(kept) < ours.LIMIT + 100
    assert kept.decode().rstrip().endswith("bytes more, which are not kept")


def test_without_git_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    assert ours.keep_uncommitted(tmp_path, [package]) == "unknown: no git checkout has package"
    monkeypatch.setenv("PATH", "")
    ours.checkout.cache_clear()
    assert ours.git_state(package) is None
    assert ours.keep_uncommitted(tmp_path, [package]) == "unknown: there is no git here"
