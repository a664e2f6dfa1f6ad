"""The words of a command line, as Hydra reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

SWITCHES = ("-m", "--multirun", "--resolve")


def quoted(text: str) -> str:
    """A text as a value of an override, whatever characters it has."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", r"\'"), text)
    return f"'{escaped}'"


def switches_first(words: Sequence[str]) -> list[str]:
    """The words with switches before overrides: Hydra's parser takes none between two overrides."""
    switches = [word for word in words if word in SWITCHES]
    return [*switches, *(word for word in words if word not in SWITCHES)]
