"""Measurements in files: CSV, a Markdown table, and the roofline plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexp.errors import UserError

if TYPE_CHECKING:
    from bitexp.bench.layers import Row


def save_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `path`.csv and `path`.md; the folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        path.with_suffix(".md").write_text(markdown(rows))
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


def plot_roofline(path: Path, rows: Sequence[Row]) -> None:
    """Writes `path`.png and `path`.svg: products per second over products per byte of packed weights.

    The roof is what the two floors allow. The plot needs matplotlib.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install 'bitexp[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from bitexp.bench.layers import DOTS, READ

    caches = list(dict.fromkeys(row.cache for row in rows))
    figure = Figure(figsize=(6.5 * len(caches), 5), layout="constrained")
    for axes, cache in zip(figure.subplots(1, len(caches), squeeze=False)[0], caches, strict=True):
        some = [row for row in rows if row.cache == cache]
        reads = [row.products / row.tokens / 4 / row.seconds for row in some if row.name == READ]
        peaks = [row.products / row.seconds for row in some if row.name == DOTS]
        if reads and peaks:
            intensity = [2**n for n in range(1, 13)]
            roof = [min(max(reads) * i, max(peaks)) / 1e9 for i in intensity]
            axes.plot(intensity, roof, color="black", label="what the processor allows")
        for name in dict.fromkeys(row.name for row in some):
            if name in (READ, DOTS):
                continue
            mine = [row for row in some if row.name == name]
            x, y = [4 * row.tokens for row in mine], [row.products / row.seconds / 1e9 for row in mine]
            axes.plot(x, y, "o" if name == "cpu" else ".", label=name)
        axes.set(xscale="log", yscale="log", title=f"weights {cache}")
        axes.set(xlabel="products per byte of packed weights (4 x tokens)", ylabel="G products per second")
        axes.legend(fontsize="small")
    for kind in (".png", ".svg"):
        figure.savefig(path.with_suffix(kind), dpi=150)
