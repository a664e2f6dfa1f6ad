"""What words depend on for their meaning: while none of it changes, they lead to the same run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from bitexp.config.paths import PACKAGE

VARIABLE = re.compile(r"oc\.env:\s*(\w+)")


def context(folders: Iterable[Path], words: Sequence[str]) -> str:
    """A hash of all that words depend on for their meaning."""
    digest = hashlib.sha256()
    files = [path for folder in folders for path in sorted(folder.rglob("*.yaml"))]
    files += sorted(PACKAGE.rglob("*.py"))
    variables = set(VARIABLE.findall(" ".join(words)))
    for path in [*files, *extension_sources()]:
        content = path.read_bytes()
        digest.update(str(path).encode() + b"\0" + content + b"\0")
        variables.update(VARIABLE.findall(content.decode(errors="replace")))
    values = {name: os.environ.get(name) for name in sorted(variables)}
    digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def extension_sources() -> list[Path]:
    """The Python files of the packages that extend bitexp."""
    files: list[Path] = []
    for point in entry_points(group="bitexp"):
        spec = find_spec(point.module.partition(".")[0])
        if spec is None:
            continue
        if not spec.submodule_search_locations:
            files += [Path(spec.origin)] if spec.origin else []
        for place in spec.submodule_search_locations or ():
            files += sorted(Path(place).rglob("*.py"))
    return files
