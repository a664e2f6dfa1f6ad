"""What is installed, as it is kept in a run's folder."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from bitexp.track.packages import installed, keep_packages, normalized, packages_of_run


def test_it_is_what_the_standard_library_finds(tmp_path: Path) -> None:
    installed.cache_clear()  # what was imported since may have added to the path
    found: dict[str, str] = {}
    for package in metadata.distributions():
        found.setdefault(normalized(package.name), package.version)
    assert installed() == found
    keep_packages(tmp_path)
    assert packages_of_run(tmp_path) == found


def test_an_old_run_has_none(tmp_path: Path) -> None:
    assert packages_of_run(tmp_path) == {}
