"""The plot of quality against size by the bits of a weight: runs, curves, and who is the best where."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bitexp.common.format import size as bytes_text
from bitexp.report import figure
from bitexp.report.by_bits import FULL, bits_text
from bitexp.report.compare import Comparison
from bitexp.report.scaling import Curve, curves, reigns
from bitexp.report.stats import SHARES

CAPTION = (
    "Quality against the size of the whole network by the bits of a weight: points are runs, curves are "
    "fitted to them, bands hold 95 % of the curves that the runs allow. Dashed and hollow: quantized after "
    "training. The bar below names the best width at each size. Activations of another width have a panel of "
    "their own."
)


def scaling(comparison: Comparison) -> Figure | None:
    """The curves; None where there are none."""
    found = curves(comparison)
    if not found:
        return None
    several = sorted({curve.activations for curve in found if curve.bits != FULL}, reverse=True)
    drawing, axes = figure.new(
        7.2 if len(several) == 1 else 9.6, 4.2, 1, len(several), sharex=True, sharey=True
    )
    widths = [bits for bits in dict.fromkeys(curve.bits for curve in found) if bits != FULL]
    palette = dict(zip(widths, figure.PRECISIONS[2:] * 4, strict=False)) | {FULL: figure.PRECISIONS[0]}
    for panel, activations in zip(axes.flat, several, strict=True):
        shown = [curve for curve in found if curve.bits == FULL or curve.activations == activations]
        for curve in shown:
            draw_curve(panel, curve, palette[curve.bits])
        for part in reigns(shown, comparison.sign):
            panel.axvspan(part.low, part.high, 0, 0.025, color=palette[part.best.bits], linewidth=0)
        panel.set_xscale("log")
        if (
            comparison.metric.rpartition("/")[2] in SHARES
        ):  # as the curves are fitted: by the log of the error
            panel.set_yscale(
                "function", functions=(lambda y: -np.log(np.clip(1 - y, 1e-9, 1)), lambda v: 1 - np.exp(-v))
            )
        if len(several) > 1:
            panel.set_title(f"activations: {bits_text(activations)}{'' if activations == FULL else ' bits'}")
        panel.set_xlabel("bytes of the whole network, packed")
        figure.logarithmic(panel.xaxis, bytes_text)
    panel = axes[0, 0]
    panel.set_ylabel(f"{comparison.metric}{' (better above)' if comparison.sign < 0 else ''}")
    if comparison.sign < 0:
        panel.invert_yaxis()
    entries: dict[str, Any] = {}
    for panel in axes.flat:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    drawing.legend(entries.values(), entries, loc="outside right upper")
    return drawing


def draw_curve(panel: Any, curve: Curve, colour: str) -> None:
    """One width: its runs, its curve and its band."""
    grid = np.geomspace(curve.sizes.min(), curve.sizes.max(), 60)
    drawn = curve.draws(grid, np.random.default_rng(0))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    panel.fill_between(grid, low, high, color=colour, alpha=0.12, linewidth=0)
    panel.plot(grid, curve.at(grid), "-" if curve.trained else "--", color=colour, label=curve.weights)
    panel.plot(
        curve.sizes, curve.scores, "o", markersize=3.5, color=colour,
        markerfacecolor=colour if curve.trained else "none",
    )  # fmt: skip
