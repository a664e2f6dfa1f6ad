"""Passwords and keys: nothing that is printed, kept or tracked holds one."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
NAMES = r"(?:password|passwd|pwd|passphrase|secret|api_?key|access_?key|(?:access|auth)_?token)"
PATTERNS = (
    re.compile(r"(://[^:/@\s]*:)[^\s]*(?=@)"),  # postgresql://USER:PASSWORD@HOST, also with an @ in it
    re.compile(rf"((?:{NAMES}|[?&]token)=)(?!\$\\?\{{)[^\s&;'\"]+", re.IGNORECASE),  # typed, or of a query
    re.compile(
        rf"({NAMES}['\"]?\s*[:=]\s*(['\"]))(?!\$\\?\{{)[^'\"\n]+(?=\2)", re.IGNORECASE
    ),  # in code, JSON
    re.compile(  # of YAML, by lines or in braces
        rf"((?:^[-+\s]*|[{{,]\s*)[\w.-]*{NAMES}:\s+)(?![\$'\"])[^\s,'\"}}]+", re.IGNORECASE | re.MULTILINE
    ),
)
SECRET_KEY = re.compile(rf"{NAMES}$", re.IGNORECASE)


def redacted(value: Any) -> Any:
    """A text, or JSON values with texts in them, without secrets: of URLs, and under names that say so."""
    if isinstance(value, str):
        if ":" not in value and "=" not in value:  # of which each pattern has one; most texts have neither
            return value
        for pattern in PATTERNS:
            value = pattern.sub(rf"\1{HIDDEN}", value)
        return value
    if isinstance(value, dict):
        return {
            redacted(key): HIDDEN if is_secret(key, item) else redacted(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def is_secret(key: Any, value: Any) -> bool:
    """Whether a mapping keeps a secret under this key."""
    return isinstance(key, str) and isinstance(value, str) and SECRET_KEY.search(key) is not None


def holds_secret(text: str) -> bool:
    """Whether a text may not be shown as it is."""
    return bool(redacted(text) != text)
