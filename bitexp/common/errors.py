"""What a user is told. A `UserError` is printed as it is, without a traceback, and exits with code 2."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

SURROUNDINGS = {
    errno.EACCES: "there is no permission for it",
    errno.EPERM: "there is no permission for it",
    errno.EROFS: "it is on a file system that is read-only",
    errno.ENOTDIR: "a file is in the place of a folder",
    errno.EEXIST: "a file is in the place of a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links go in a circle",
    errno.ENOLCK: "its file system has no locks",
    errno.ENOSYS: "its file system has no locks",
}
"""What is wrong around a program and not in it, by the number of an `OSError`."""

LONG = 120  # characters of a path that are shown

MEMORY = ("out of memory", "allocate memory", "bad_alloc", "failed to map segment")


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, what is allowed, what to do."""

    kind = "config"
    """What it is about, for records."""


class Damaged(UserError):
    """A file of a run is gone, or not what was written; the config is as good as ever."""

    kind = "damaged"


class Unusable(UserError, ValueError):
    """A word or a value that cannot be used, by a library's caller or a user: `ValueError` to the one."""


class Pruned(Exception):
    """A study ended the run before its time; the message says when and at which value."""


def describe_crash(crash: BaseException) -> dict[str, str]:
    """The kind and reason of a failure: out of memory, disk full, a file's surroundings, or a crash.

    What came before counts as well: torch answers a lack of memory or disk while it saves with another error.
    """
    before = crash.__cause__ or crash.__context__
    if isinstance(before, MemoryError | OSError):
        cause = describe_crash(before)
        if cause["kind"] != "crash":
            return cause
    text = str(crash).strip().splitlines()
    reason = f"{type(crash).__name__}: {text[0] if text else ''}".rstrip(": ")
    if isinstance(crash, MemoryError) or any(words in str(crash).lower() for words in MEMORY):
        return {"kind": "out_of_memory", "reason": f"out of memory ({reason})"}
    if isinstance(crash, OSError) and crash.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return {"kind": "disk_full", "reason": f"the disk is full ({reason})"}
    if isinstance(crash, OSError) and crash.errno in SURROUNDINGS and crash.filename is not None:
        name = os.fsdecode(crash.filename)
        if crash.errno in (errno.ENOTDIR, errno.EEXIST):
            name = in_the_way(name)
        shown = name if len(name) <= LONG else f"{name[:LONG]}..."
        return {"kind": "surroundings", "reason": f"{shown} cannot be used: {SURROUNDINGS[crash.errno]}"}
    return {"kind": "crash", "reason": reason}


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_the_way(path: str) -> str:
    """The file on the way to a path that is no folder; the path itself where there is none."""
    for place in (*reversed(Path(path).parents), Path(path)):
        if os.path.lexists(place) and not place.is_dir():
            return str(place)
    return path


def is_of_the_machine(problem: Exception) -> bool:
    """Whether a failure to read a file says nothing about the file: no memory, no permission, a bad disk.

    A damaged file can make its readers pass an invalid argument to the system, and a folder is no file.
    """
    if isinstance(problem, OSError):
        return problem.errno not in (None, errno.EINVAL, errno.EISDIR, errno.ENOENT)
    if isinstance(problem, ValueError | TypeError | LookupError):  # which may quote any words of a file
        return False
    return describe_crash(problem)["kind"] == "out_of_memory"


class Diverged(Exception):
    """The loss is NaN or infinite; the message says at which step."""


class Stopped(Exception):
    """A signal ended the run after a checkpoint; `signum` is its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
