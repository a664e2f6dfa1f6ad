"""Files that are whole or not there: written beside, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import yaml

from bitexp.common.secrets import redacted


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a crash at any time leaves the old one or the new one, never a part.

    Raises:
        OSError: the disk is full, say; the old file is intact and no scrap is left.
    """
    scrap = path.with_name(f".{path.name}.part")  # a killed process leaves one, the next one uses it
    try:
        with scrap.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scrap, path)
    except BaseException:
        scrap.unlink(missing_ok=True)
        raise


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
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, atomically, for people: indented, with a final newline and without secrets."""
    write_atomic(path, (json.dumps(redacted(value), indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """The value in a JSON file, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
