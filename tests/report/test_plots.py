"""How rows are told apart in plots."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexp.report import figure
from bitexp.report.compare import compare
from bitexp.report.plots import DASHES, MARKERS, SHOWN, legend, looks
from bitexp.report.runs import read_runs


def test_no_two_rows_of_a_precision_look_alike(write_run: Callable[..., Path], outputs: Path) -> None:
    for width, norm in itertools.product((16, 32), ("layer", "rms")):
        write_run("full", 0, 0.9, model__hidden=width)
        changes = {"model__hidden": width, "quantizer__norm": norm}
        write_run("binary", 0, 0.8, **changes)
        write_run("ternary_mean", 0, 0.8, **changes)
    (comparison,) = compare(read_runs([outputs])[0])
    assert len(comparison.rows) == 2 + 4 + 4
    look = looks(comparison)
    styles = [look(row) for row in comparison.rows]
    for shapes in (DASHES, MARKERS):
        assert len({(style["color"], shapes[style["place"] % len(shapes)]) for style in styles}) == 10
    assert len({style["label"] for style in styles}) == 10


def test_as_many_rows_as_a_plot_shows_have_markers_of_their_own() -> None:
    assert len(set(MARKERS)) == len(MARKERS) == SHOWN


@pytest.mark.parametrize("width", [figure.NARROW, 8.4])
def test_a_long_legend_leaves_room_for_the_panels_and_is_not_cut(width: float) -> None:
    """The names of rows that differ in many keys are long, and there may be a dozen."""
    with figure.style():
        drawing, axes = figure.new(width, 3.3)
        for place in range(SHOWN):
            name = f"ternary_mean, model=mlp, epochs={place}, hidden=[128, 128], recipe=continual_phased"
            axes[0, 0].plot([0, 1], [0, 1], label=name)
        legend(drawing, axes)
        drawing.draw_without_rendering()
        (box,) = (one.get_window_extent() for one in drawing.legends)
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= drawing.bbox.x1
    assert axes[0, 0].get_window_extent().height / drawing.dpi > 2


def test_colours_go_by_precision_whatever_row_comes_first(
    write_run: Callable[..., Path], outputs: Path
) -> None:
    write_run("ternary_mean", 0, 0.8, trainer__epochs=1)
    for quantizer in ("binary", "full"):
        write_run(quantizer, 0, 0.8, trainer__epochs=2)
    (comparison,) = compare(read_runs([outputs])[0])
    assert [row.cell.precision for row in comparison.rows] == ["ternary_mean", "full", "binary"]
    assert comparison.precisions == ["full", "binary", "ternary_mean"]
