"""What a layer benchmark measured, and its plot against what the processor allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

READ, DOTS = "floor: read packed bytes", "floor: bare products"


@dataclass(frozen=True)
class LayerTiming:
    """One measurement; `floor` is the larger of both floors of the same layer and round."""

    cache: str
    outputs: int
    inputs: int
    tokens: int
    name: str
    seconds: float
    times_floor: float | None
    times_fp32: float | None

    @property
    def products(self) -> int:
        return self.outputs * self.inputs * self.tokens


def plot_roofline(path: Path, rows: Sequence[LayerTiming]) -> None:
    """Writes `path`.png and `path`.svg: products per second over products per byte of packed weights.

    The roof is what the two floors allow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

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
