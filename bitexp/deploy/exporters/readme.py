"""README.md of an exported folder: where it comes from, what is exact, how to run it, what the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from bitexp.common.format import size
from bitexp.deploy.exporters.exporter import Exported, Packed
from bitexp.deploy.exporters.hub import measured, metadata
from bitexp.deploy.packed_file import read_packed, sizes

MARK = "Exported by bitexp"
"""What tells a folder of ours from one of somebody else."""


def readme(packed: Packed, exported: Exported, engine: str, files: Mapping[str, int]) -> str:
    """The text.

    Args:
        files: bytes by name.

    Raises:
        UserError: a base model that is no name on the hub.
    """
    file = read_packed(packed.path)
    quantizer = packed.description.quantizer
    assert isinstance(quantizer, Mapping)
    listed = ", ".join(f"`{name}` ({size(count)})" for name, count in sorted(files.items()))
    found = measured(packed)
    lines = [
        *front_matter(metadata(packed, exported.metadata, found)),
        f"# {packed.name}, for {engine}",
        "",
        f"{MARK} from `{packed.path.name}` of {packed.name}: a {packed.description.model} with the quantizer "
        f"{quantizer['name']}, {size(sizes(file)['total_bytes'])} of tensors. Files: {listed}.",
        "",
        "## How to run it",
        "",
        f"```{exported.language}",
        exported.usage.rstrip(),
        "```",
        "",
        "## What is exact",
        "",
        *(f"- {sentence}" for sentence in exported.exact),
        "",
        *(["## What was measured", "", str(found), ""] if found is not None and found.metrics else []),
    ]
    return "\n".join(lines)


def front_matter(head: Mapping[str, Any]) -> list[str]:
    """YAML at the head of a file."""
    return ["---", *yaml.safe_dump(dict(head), sort_keys=False).splitlines(), "---", ""]
