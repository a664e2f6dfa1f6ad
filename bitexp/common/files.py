"""Files that are whole or not there: written beside, flushed to disk, renamed.

Folders may come from strangers. What is read is a regular file of a bounded size, whatever a name leads to;
what is written follows no link.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from bitexp.common.secrets import redacted

LARGEST = 64 * 2**20
"""Bytes of a file that is read whole; none of ours comes near."""
LARGEST_YAML, SMALL_YAML = 1_000_000, 20_000
"""Characters of YAML beyond which it is none of ours, and of one as most are."""
FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
NO_WAITING: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class NotPlain(OSError):
    """A name that leads to no regular file, or to one that is larger than any of ours."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading, and never waits as a pipe would make one wait.

    Raises:
        OSError: it is not there, or cannot be opened; `NotPlain`: it is a folder, a pipe or a device.
    """
    try:
        check_regular(path, os.stat(path))  # a device may not even be opened
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotPlain(f"{path} is a link to itself") from None
        raise
    descriptor = os.open(path, os.O_RDONLY | NO_WAITING)
    try:
        check_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path, found: os.stat_result) -> None:
    """Raises `NotPlain` unless this is what is known of a regular file."""
    if not stat.S_ISREG(found.st_mode):
        raise NotPlain(f"{path} is no regular file")


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """A whole file of at most `limit` bytes. Raises what `open_regular` does, `NotPlain` for a larger one."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limit or len(content := file.read(limit + 1)) > limit:
            raise NotPlain(f"{path} has more than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = LARGEST, errors: str = "strict") -> str:
    """The same as text in UTF-8, its line ends as Python has them. Raises `UnicodeDecodeError` besides."""
    return read_bytes(path, limit).decode(errors=errors).replace("\r\n", "\n").replace("\r", "\n")


def open_for_appending(path: Path) -> BinaryIO:
    """Opens a file to write at its end, created where it is not there. Raises `OSError` for a link."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINKS, 0o666), "ab")


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a crash at any time leaves the old one or the new one, never a part.

    A link in its place is replaced and not followed.

    Raises:
        OSError: the disk is full, say; the old file is intact and no scrap is left.
    """
    with open_atomic(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written piece by piece; it is there when all went well."""
    scrap = path.with_name(f".{path.name}.part")
    scrap.unlink(missing_ok=True)  # a killed process leaves one, a stranger perhaps a link
    try:
        with os.fdopen(os.open(scrap, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scrap, path)
    except BaseException:
        scrap.unlink(missing_ok=True)
        raise


def remove_scraps(folder: Path, age: float = 60.0) -> None:
    """Removes what killed processes have left of files in a folder, by `write_atomic`.

    Args:
        age: seconds since the last byte; what is younger may be of a process that writes it now.
    """
    for scrap in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - scrap.lstat().st_mtime > age:
                scrap.unlink()


def create_unused(path: Path) -> Path:
    """Creates a folder of that name, or where it is taken, perhaps just now, the same with a number."""
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError


def write_yaml(path: Path, value: Any) -> None:
    """Writes YAML, atomically, in the order given and without secrets."""
    write_atomic(path, yaml.safe_dump(redacted(value), sort_keys=False, allow_unicode=True).encode())


def read_yaml(path: Path) -> Any | None:
    """The value in a YAML file, or None where there is none that can be read."""
    try:
        return parse_yaml(read_text(path, LARGEST))
    except (FileNotFoundError, NotPlain, ValueError, RecursionError, yaml.YAMLError):
        return None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text that may be of anyone. Do not change it: texts share what they have in common.

    Raises:
        yaml.YAMLError: it is no plain YAML; ValueError: it is far too large; RecursionError: it is nested too
        deeply.
    """
    if len(text) > LARGEST_YAML:
        raise ValueError(f"it has more than {LARGEST_YAML:,} characters")
    if len(text) > SMALL_YAML:  # the fast loader would end the process where it is nothing but brackets
        return yaml.load(text, yaml.SafeLoader)
    entries = re.split(
        r"^(?=- )" if text.startswith("- ") else r"^(?=[A-Za-z_]\w*:)", text, flags=re.MULTILINE
    )
    try:
        values = [parsed(entry) for entry in entries if entry]
    except (ValueError, yaml.YAMLError):
        return yaml.load(text, FastLoader)  # which says where the mistake is
    if values and all(isinstance(value, list) for value in values):
        return list(itertools.chain.from_iterable(values))
    if values and all(isinstance(value, dict) for value in values):
        return {key: part for value in values for key, part in value.items()}
    return yaml.load(text, FastLoader)


@functools.lru_cache(maxsize=4096)
def parsed(entry: str) -> Any:
    """One entry of a YAML file; runs have most of them in common, and to parse is slow."""
    return yaml.load(entry, FastLoader)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, atomically, for people: indented, with a final newline and without secrets."""
    write_atomic(path, (json.dumps(redacted(value), indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """The value in a JSON file, or None where there is none that can be read."""
    try:
        return json.loads(read_bytes(path))
    except (FileNotFoundError, NotPlain, ValueError, RecursionError):
        return None
