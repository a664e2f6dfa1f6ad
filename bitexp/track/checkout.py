"""What git knows of the source: the commit, and what is not committed. No other repository is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from difflib import unified_diff
from functools import cache
from pathlib import Path
from typing import Any

from bitexp.common.files import write_atomic
from bitexp.common.secrets import redacted
from bitexp.track.code import is_shared

DIFF = "uncommitted.diff"
"""The file in a run's folder that holds what was not committed. It is sent to no tracker."""
LIMIT = 1_000_000
"""Bytes that are kept of it."""
SOURCES = (".py", ".yaml")


def git(folder: Path, *words: str, seconds: float = 10) -> str:
    """What git answers in a folder; the environment names no other repository, index or program.

    Raises:
        OSError, subprocess.SubprocessError: there is no git, no checkout, or no such thing.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), "-c", "core.quotePath=false", "-c", "core.fsmonitor=false", *words]
    answer = subprocess.run(command, capture_output=True, timeout=seconds, check=True, env=environment)
    return answer.stdout.decode(errors="replace")


@cache
def checkout(path: Path) -> Path | None:
    """The top of the checkout that keeps a package or a file; None where none does.

    What is installed may lie within the checkout of another project, which knows nothing of it.
    """
    folder = folder_of(path)
    if is_shared(path.parent):
        return None
    try:
        if not git(folder, "ls-files", "--cached", "--others", "--exclude-standard", "--", str(path)):
            return None
        return Path(git(folder, "rev-parse", "--show-toplevel").rstrip("\n"))
    except (OSError, subprocess.SubprocessError):
        return None


def folder_of(path: Path) -> Path:
    """A folder itself, or that of a file."""
    return path if path.is_dir() else path.parent


@cache
def git_state(path: Path) -> dict[str, Any] | None:
    """Commit of the checkout that keeps a package and whether the package is changed; None without one."""
    if checkout(path) is None:
        return None
    try:
        commit = git(folder_of(path), "rev-parse", "HEAD").strip()
        changes = git(folder_of(path), "status", "--porcelain", "--", str(path))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


@cache
def uncommitted(path: Path) -> str:
    """What is not committed of a package or a file: a diff to HEAD, new files with it."""
    top = checkout(path)
    if top is None:
        return ""
    try:
        diff = git(top, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--", str(path))
        new = git(top, "ls-files", "-z", "--others", "--exclude-standard", "--", str(path)).split("\0")
    except (OSError, subprocess.SubprocessError):
        return ""
    return diff + "".join(added(top, name) for name in new if name.endswith(SOURCES))


def added(top: Path, name: str) -> str:
    """A new file as a diff."""
    try:
        if (top / name).stat().st_size > LIMIT:
            return f"+++ b/{name}: larger than {LIMIT:,} bytes\n"
        lines = (top / name).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"+++ b/{name}: {error.strerror}\n"
    return "\n".join([*unified_diff([], lines, "/dev/null", f"b/{name}", lineterm=""), ""])


def keep_uncommitted(folder: Path, paths: Sequence[Path]) -> str:
    """Writes what is not committed of packages and files into a run's folder, without secrets.

    Returns:
        the name of the file, or in words why there is none.

    Raises:
        OSError: it cannot be written.
    """
    content = redacted("".join(map(uncommitted, paths))).encode()
    if not content:
        (folder / DIFF).unlink(missing_ok=True)
        if shutil.which("git") is None:
            return "unknown: there is no git here"
        outside = [path.name for path in paths if checkout(path) is None]
        return f"unknown: no git checkout has {', '.join(outside)}" if outside else "nothing"
    if len(content) > LIMIT:
        end = f"\n... and {len(content) - LIMIT:,} bytes more, which are not kept\n"
        content = content[:LIMIT].decode(errors="ignore").encode() + end.encode()
    write_atomic(folder / DIFF, content)
    return DIFF
