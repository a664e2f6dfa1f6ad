"""Under what a run was made, as far as its id does not count it: versions and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VERSIONS = {"bitexp": "versions of bitexp", "torch": "versions of torch"}
"""The conditions that a repetition makes alike, and what they are together."""
CONDITIONS = {**VERSIONS, "device": "devices", "kernel": "kernels"}
"""All of them. Threads, precision and the number of devices are counted by the id."""


def conditions(
    attempts: Sequence[Mapping[str, Any]], result: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """The values of each condition over all attempts at a run; none where nothing is known."""
    found = [*(condition_of(attempt, result) for attempt in attempts), {"bitexp": result.get("source")}]
    return {
        name: tuple(dict.fromkeys(str(one[name]) for one in found if one.get(name) is not None))
        for name in CONDITIONS
    }


def condition_of(attempt: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of one attempt."""
    versions = attempt.get("versions")
    return {
        "bitexp": attempt.get("source"),
        "torch": versions.get("torch") if isinstance(versions, Mapping) else None,
        "device": attempt.get("device") or attempt.get("processor"),  # the latter before 2026-12
        "kernel": attempt.get("kernel") or result.get("kernel"),
    }
