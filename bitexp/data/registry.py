"""Data sets by the word a user types: `data=digits`."""

from __future__ import annotations

from typing import Any

from bitexp.common.registry import Registry

DATA: Registry[Any] = Registry("data")
