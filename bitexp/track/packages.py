"""Every package that is installed, as a list that pip reads; kept in the folder of each run."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

from bitexp.common.files import read_text, write_atomic

PACKAGES = "packages.txt"
"""The file in a run's folder."""


@cache
def installed() -> dict[str, str]:
    """The version of each package by its name; of several copies the first on the path counts.

    Names and versions are those of the folders NAME-VERSION.dist-info: to read the metadata of hundreds of
    packages takes as long as a short run.
    """
    found: dict[str, str] = {}
    for place in dict.fromkeys(sys.path):
        folder = Path(place or ".")
        for entry in sorted(folder.glob("*.dist-info")) if folder.is_dir() else ():
            name, _, version = entry.name.removesuffix(".dist-info").rpartition("-")
            if name and version:
                found.setdefault(normalized(name), version)
    return dict(sorted(found.items()))


def normalized(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def keep_packages(folder: Path) -> None:
    """Writes what is installed into a run's folder. Raises `OSError`."""
    lines = "".join(f"{name}=={version}\n" for name, version in installed().items())
    write_atomic(folder / PACKAGES, lines.encode())


def packages_of_run(folder: Path) -> dict[str, str]:
    """What was installed for the last attempt at a run; nothing where that was not kept (before 2026-12)."""
    try:
        lines = read_text(folder / PACKAGES, errors="replace").splitlines()
    except OSError:
        return {}
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}
