"""An exporter by its word and options, and the folder that it fills, put into its place at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.files import read_text, write_atomic
from bitexp.config.arguments import check_arguments
from bitexp.deploy.exporters.exporter import EXPORTERS, Exported, Exporter, Packed
from bitexp.deploy.exporters.readme import MARK, readme


def build(target: str, arguments: Mapping[str, Any]) -> Exporter:
    """An exporter with its options. Raises `UserError` for unknown ones."""
    kind = EXPORTERS.get(target)
    exporter: Exporter = kind(**check_arguments(target, kind, arguments))
    return exporter


def write(exporter: Exporter, packed: Packed, out: Path) -> tuple[Exported, dict[str, int]]:
    """Writes all files beside the place, then puts them there at once; returns them with their bytes.

    Raises:
        UserError: the place is taken by something that was not exported.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or MARK in read_mark(out))):
        raise UserError(f"{out} is there already and was not exported by bitexp; --out names another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        exported = exporter.write(packed, folder)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file()
        }
        write_atomic(folder / "README.md", readme(packed, exported, exporter.engine, files).encode())
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
    return exported, files


def read_mark(folder: Path) -> str:
    """The README of a folder, or nothing."""
    try:
        return read_text(folder / "README.md", errors="replace")
    except OSError:
        return ""
