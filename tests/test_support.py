"""What stands in for the real thing in other tests has its form."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.run_folders import MakeRun
from tests.support.training import Train


def keys(value: object, prefix: str = "") -> set[str]:
    """The keys of a tree of mappings, with dots."""
    if not isinstance(value, dict):
        return {prefix}
    return {found for key, part in value.items() for found in keys(part, f"{prefix}.{key}")}


def test_a_run_that_never_was_has_no_key_that_a_real_one_lacks(
    make_run: MakeRun, train: Train, tmp_path: Path
) -> None:
    real, made = train().folder, make_run(tmp_path / "made")
    for name in ("result.json", "provenance.json"):
        found, known = (json.loads((folder / name).read_text()) for folder in (made, real))
        for attempts in (found, known):
            attempts.update(enumerate(attempts.pop("attempts", [])))
        assert keys(found) <= keys(known), name
    assert {path.name for path in made.iterdir()} <= {path.name for path in real.iterdir()}
