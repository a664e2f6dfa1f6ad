"""Files that are whole or not there: written beside, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a crash at any time leaves the old one or the new one, never a part.

    Raises:
        OSError: the disk is full, say; the old file is intact and no scrap is left.
    """
    handle, scrap = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scrap, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scrap)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, atomically, for people: indented, with a final newline."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any | None:
    """The value in a JSON file, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
