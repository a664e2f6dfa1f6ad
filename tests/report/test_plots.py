"""How rows are told apart in plots."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from bitexp.report.compare import compare
from bitexp.report.plots import DASHES, MARKERS, looks
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
