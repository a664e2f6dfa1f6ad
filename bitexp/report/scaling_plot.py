"""The plot of quality against size by the bits of a weight: runs, curves, and who is the best where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bitexp.common.format import counted
from bitexp.common.format import size as bytes_text
from bitexp.report import figure
from bitexp.report.by_bits import FULL, bits_text
from bitexp.report.compare import Comparison
from bitexp.report.scaling import Curve, back, curves, reigns, transformed
from bitexp.report.stats import is_share

CAPTION = (
    "Quality against the size of the whole network by the bits of a weight: points are runs, curves are "
    "fitted to them, bands hold 95 % of the curves that the runs allow. Dashed and hollow: quantized after "
    "training; runs far worse than what was trained are only counted. The bar below names the best width at "
    "each size. Activations of another width have a panel of their own."
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
        if is_share(comparison.metric):  # as the curves are fitted: by the log of the error
            panel.set_yscale(
                "function", functions=(lambda y: -np.log(np.clip(1 - y, 1e-9, 1)), lambda v: 1 - np.exp(-v))
            )
        if len(several) > 1:
            panel.set_title(f"activations: {bits_text(activations)}{'' if activations == FULL else ' bits'}")
        panel.set_xlabel("bytes of the whole network, packed")
        figure.logarithmic(panel.xaxis, bytes_text)
    limit(axes.flat, several, found, comparison)
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


def limit(
    panels: Iterable[Any], activations: Sequence[float], found: Sequence[Curve], comparison: Comparison
) -> None:
    """Ends the axis where nothing of interest lies beyond, and says how many runs do."""
    ends = ends_of_axis(found, comparison)
    for panel, width in zip(panels, activations, strict=True):
        if ends is None:
            if is_share(comparison.metric):
                panel.set_ylim(bottom=max(0.0, panel.get_ylim()[0]))
            continue
        shown = [curve.scores for curve in found if curve.bits == FULL or curve.activations == width]
        panel.set_ylim(*sorted(ends))
        beyond = int((comparison.sign * np.concatenate(shown) < comparison.sign * ends[0]).sum())
        if beyond:
            panel.text(0.02, 0.05, f"{counted(beyond, 'run')} below", transform=panel.transAxes, fontsize=7)


def ends_of_axis(found: Sequence[Curve], comparison: Comparison) -> tuple[float, float] | None:
    """The worst score that is shown, and the best; None where all are.

    It is as far beyond the worst of the trained runs as that is from the best: networks that rounding alone
    has ruined would else take all the room, and leave none for what differs.
    """
    metric = comparison.metric
    way = 1 if comparison.sign < 0 or is_share(metric) else -1  # of values, so that more is worse
    values = [way * transformed(curve.scores, metric) for curve in found]
    trained = [v for curve, v in zip(found, values, strict=True) if curve.trained]
    if not trained:
        return None
    worst, best = max(v.max() for v in trained), min(v.min() for v in values)
    end = 2 * worst - best
    if max(v.max() for v in values) <= end:
        return None
    margin = 0.05 * (end - best)
    return float(back(way * end, metric)), float(back(way * (best - margin), metric))


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
