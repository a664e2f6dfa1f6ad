"""The config of a run as it is compared with others, where it began with what another run had learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitexp.track.lineage import known

TRAINING = "start.training"
"""Says `none` of runs without steps."""
OF_TRAINING = ("optimizer.", "scheduler.")


def origins(flat: Mapping[str, Any], attempt: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run as it is compared with others.

    A run of another seed is another source, and yet the same choice: it is named by its precision and its
    setting. Of a run without steps, what is said of its training counts for nothing, and its budget is that
    of what it starts from.
    """
    known_by = dict(flat)
    if flat.get("trainer.max_steps") == 0:
        known_by = {key: value for key, value in flat.items() if not key.startswith(OF_TRAINING)}
        known_by = {TRAINING: "none", **known_by, "trainer.max_steps": None}
    entries = {entry["run"].rpartition("/")[2]: entry for entry in known(attempt)}
    for key, value in flat.items():
        if key.endswith(".identity") and value in entries:
            entry = entries[value]
            known_by[key] = f"{entry['quantizer']} ({entry['setting'][:6]})"
    return known_by
