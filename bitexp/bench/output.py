"""Measurements in files: CSV and a Markdown table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError


def save_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `path`.csv and `path`.md; the folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        path.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a line per row; floats with four digits."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
    """A value for people."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
