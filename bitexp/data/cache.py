"""What is made from data once and kept: below one folder, each record with a checksum of its own."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeGuard


def cache_folder() -> Path:
    """Where things are kept: $BITEXP_CACHE, or ~/.cache/bitexp."""
    named = os.environ.get("BITEXP_CACHE")
    return Path(named).expanduser().absolute() if named else home() / ".cache" / "bitexp"


def home() -> Path:
    """The user's folder, or one of their number among temporary files where the system knows no such user."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"home-{os.getuid()}"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record of JSON values with its checksum."""
    return {**record, "checksum": _checksum(record)}


def is_whole(record: Any) -> TypeGuard[dict[str, Any]]:
    """Whether that is a record as `sealed` made it."""
    if not isinstance(record, dict):
        return False
    content = {key: value for key, value in record.items() if key != "checksum"}
    return bool(record.get("checksum") == _checksum(content))


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()
