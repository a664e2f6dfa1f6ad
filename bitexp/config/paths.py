"""Where the package and its configs are."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "_conf" if (PACKAGE / "_conf").is_dir() else PACKAGE.parent / "conf"
"""The configs: inside the package where it is installed, beside it in a checkout."""


@cache
def conf_folders() -> tuple[Path, ...]:
    """The configs of bitexp, then the folder `conf` of every package that extends it."""
    return CONF, *extension_folders().values()


def extension_folders() -> dict[str, Path]:
    """The folder `conf` of every package that has an entry point of the group `bitexp`, by its name."""
    folders = {}
    for point in entry_points(group="bitexp"):
        spec = find_spec(point.module.partition(".")[0])
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (Path(place) / "conf").is_dir():
                folders[point.name] = Path(place) / "conf"
    return folders
