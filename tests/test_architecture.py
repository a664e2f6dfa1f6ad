"""The architecture, read from the imports in the source: a failure names the arrow that breaks it."""

from __future__ import annotations

import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import pytest

from bitexp.track import code, provenance
from tests.support.source import (
    PACKAGE,
    ROOT,
    Arrow,
    arrows,
    foreign_privates,
    room,
    texts_of_the_locale,
)

ROOMS = (
    "common", "config", "quant", "kernels", "models", "data", "track", "train", "tasks", "deploy", "run",
    "report", "allocation", "sweep", "claims", "plugins", "cli", "bench",
)  # fmt: skip
"""From the ground up: a room imports from those before it."""
DOORS = ("bitexp", "__main__")  # they open every room, and no room opens them
CORE = ("quant", "kernels", "models")
OUTSIDE_OF_THE_CORE = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "optuna"}

PRIVATE = {
    "concurrent.futures": {"bitexp/kernels/cpu/threads.py": {"_max_workers"}},
    "hydra": {"bitexp/plugins/hydra_plugins/bitexp/hydra_private.py": {"_return_value", "_launcher_util"}},
    "litespark_inference": {"bitexp/bench/peers.py": {"_load"}},
    "numba": {"bitexp/kernels/cpu/cache.py": {"_cache", "_cache_path", "_impl"}},
    "optuna": {"bitexp/sweep/optuna_private.py": {"_find_sample_id", "_storage", "_study_id", "_trial_id"}},
    "torch": {
        "bitexp/quant/modes.py": {
            "_C", "_are_functorch_transforms_active", "_call_impl", "_functorch", "_get_tracing_state",
            "_has_storage", "_int_mm", "_is_vnni_supported", "_len_torch_dispatch_stack", "_metadata",
            "_modules", "_parameters", "_version",
        },
    },
    "wandb_workspaces": {"bitexp/report/workspaces_private.py": {"_to_model"}},
}  # fmt: skip
"""Where names are used that other libraries keep to themselves and an upgrade may break: one file each."""


def between_rooms() -> dict[tuple[str, str], list[Arrow]]:
    """The imports of bitexp from one of its rooms into another, by the pair."""
    found = defaultdict(list)
    for arrow in arrows():
        source, target = arrow.rooms
        if arrow.target.startswith("bitexp.") and source != target:  # all import `bitexp` itself
            found[source, target].append(arrow)
    return found


def listed(found: list[Arrow]) -> str:
    return "\n".join(map(str, found))


def test_no_rooms_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for source, target in between_rooms():
        graph[source].add(target)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1][::-1]  # it names the imported before the importing
        steps = [between_rooms()[step][0] for step in pairwise(circle)]
        pytest.fail(f"a circle of rooms, {' -> '.join(circle)}:\n{listed(steps)}")


def test_nothing_imports_upwards() -> None:
    heights = {name: height for height, name in enumerate((*ROOMS, *DOORS))}
    up = [
        arrow
        for (source, target), found in between_rooms().items()
        if heights.get(source, -1) < heights.get(target, len(heights))  # an unknown room is wrong both ways
        for arrow in found
    ]
    assert not up, f"upwards in {' < '.join(ROOMS)}:\n{listed(up)}"


def test_every_room_has_its_place() -> None:
    assert {path.name for path in PACKAGE.iterdir() if any(path.rglob("*.py"))} == set(ROOMS)


def test_the_map_shows_them_in_this_order() -> None:
    rows = re.findall(r"^\| \[?`(\w+)/`", (PACKAGE / "README.md").read_text(), re.MULTILINE)
    assert tuple(rows) == ROOMS


def test_a_version_is_what_lies_below_that_which_only_looks_at_runs() -> None:
    """What a run's `source` hashes."""
    assert ROOMS[: ROOMS.index("report")] == provenance.ROOMS
    assert set(code.ROOMS) <= set(provenance.ROOMS)


def test_the_core_imports_no_framework() -> None:
    """Neither by itself nor by what it imports."""
    imported = defaultdict(list)
    for arrow in arrows():
        if not arrow.deferred or room(arrow.source) in CORE:
            imported[arrow.source].append(arrow)
    ways: dict[str, list[Arrow]] = {
        name: [] for name in imported if room(name) in CORE
    }  # how each module is reached
    waiting = list(ways)
    while waiting:
        module = waiting.pop()
        for arrow in imported[module]:
            way = [*ways[module], arrow]
            assert room(arrow.target) not in OUTSIDE_OF_THE_CORE, listed(way)
            if arrow.target in imported and arrow.target not in ways:
                ways[arrow.target] = way
                waiting.append(arrow.target)


def test_bitexp_has_at_most_twenty_rooms_and_two_loose_files() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert sum(path.is_dir() for path in entries) <= 20
    assert {path.name for path in entries if path.suffix == ".py"} == {"__init__.py", "__main__.py"}


def test_no_file_is_longer_than_400_lines() -> None:
    files = [path for folder in ("bitexp", "tests") for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)) for path in files if len(path.read_text().splitlines()) > 400}
    assert long == set(), "cut them by subject"


def test_private_names_of_other_libraries_are_used_in_known_files_only() -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for files in PRIVATE.values():
        for file, names in files.items():
            known[file] |= names
    assert foreign_privates() == known


def test_private_names_of_a_library_are_used_in_one_file() -> None:
    assert [library for library, files in PRIVATE.items() if len(files) > 1] == []


def test_text_is_utf_8_whatever_the_locale() -> None:
    assert list(texts_of_the_locale()) == []
