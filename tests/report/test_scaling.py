"""Curves of quality over sizes: what was put into made-up runs comes out."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bitexp.report import figure
from bitexp.report.compare import Comparison, compare
from bitexp.report.runs import read_runs
from bitexp.report.scaling import curves, reigns, size_table
from bitexp.report.scaling_plot import scaling
from bitexp.report.write import write_report

Write = Callable[..., Path]
WIDTHS = (8, 16, 32, 64, 128)


def size_of(width: int, bits: float) -> float:
    return 1000 + width * width * bits / 8


def error(size: float, bits: float) -> float:
    """In the logarithm of the size a line; that of 4 bits is above that of 2 up to 4,000 bytes."""
    return float(0.1 * (size / 4000) ** (-0.3 if bits == 4 else -0.15))


def write(write_run: Write, outputs: Path, noise: float, activations: Sequence[int] = (8,)) -> Comparison:
    draw = np.random.default_rng(0)
    for bits, width_of_activations in itertools.product((2, 4), activations):
        for width in WIDTHS:
            size = size_of(width, bits)
            for seed in range(3):
                accuracy = 1 - error(size, bits) * float(np.exp(noise * draw.standard_normal()))
                metrics = {
                    "test/accuracy": accuracy,
                    "size/total_bytes": size,
                    "size/weight_bits": bits,
                    "size/activation_bits": width_of_activations,
                }
                changes = {
                    "quantizer__weights__bits": bits,
                    "quantizer__activations__name": f"int{width_of_activations}",
                    "model__hidden": [width],
                }
                write_run("uniform_mse", seed, result={"metrics": metrics}, **changes)
    (comparison,) = compare(read_runs([outputs])[0])
    return comparison


def test_the_curve_and_the_size_at_which_they_cross(write_run: Write, outputs: Path) -> None:
    comparison = write(write_run, outputs, noise=0.005)
    two, four = curves(comparison)
    assert (two.label, four.label) == ("2 bits", "4 bits")
    sizes = np.array([1500.0, 2500.0])
    assert four.at(sizes) == pytest.approx([1 - error(size, 4) for size in sizes], abs=1e-3)
    small, large = [part for part in reigns([two, four], 1) if part.high / part.low > 1.1]
    assert (small.best.bits, large.best.bits) == (2, 4)
    assert small.high == pytest.approx(4000, rel=0.15)
    assert min(small.share, large.share) > 0.95
    (swapped, _) = [part for part in reigns([two, four], -1) if part.high / part.low > 1.1]
    assert swapped.best.bits == 4


def test_activations_of_another_width_have_curves_and_a_panel_of_their_own(
    write_run: Write, outputs: Path
) -> None:
    comparison = write(write_run, outputs, 0.005, activations=(8, 4))
    assert [curve.label for curve in curves(comparison)] == [
        "2 bits", "2 bits, activations 4", "4 bits", "4 bits, activations 4",
    ]  # fmt: skip
    with figure.style():
        drawing = scaling(comparison)
    assert drawing is not None
    assert [panel.get_title() for panel in drawing.axes] == ["activations: 8 bits", "activations: 4 bits"]
    for panel in drawing.axes:
        assert panel.get_legend_handles_labels()[1] == ["2 bits", "4 bits"]


def test_runs_that_rounding_has_ruined_are_counted_and_do_not_stretch_the_axis(
    write_run: Write, outputs: Path
) -> None:
    comparison = write(write_run, outputs, noise=0.005)
    trained = [run.score for run in comparison.runs]
    for width, seed in itertools.product(WIDTHS, range(3)):
        size = size_of(width, 1)
        write_run(
            "uniform_mse", seed, quantizer__weights__bits=1, quantizer__activations__name="int8",
            model__hidden=[width], trainer__max_steps=0,
            result={
                "steps": 0,
                "metrics": {
                    "test/accuracy": 0.1 + width / 1000, "size/total_bytes": size,
                    "size/weight_bits": 1, "size/activation_bits": 8,
                },
            },
        )  # fmt: skip
    (comparison,) = compare(read_runs([outputs])[0])
    assert [curve.trained for curve in curves(comparison)] == [False, True, True]
    with figure.style():
        drawing = scaling(comparison)
    assert drawing is not None
    (panel,) = drawing.axes
    assert 0.5 < panel.get_ylim()[0] < min(trained)
    assert [text.get_text() for text in panel.texts] == ["15 runs below"]


def test_a_share_has_no_axis_below_zero(write_run: Write, outputs: Path) -> None:
    with figure.style():
        drawing = scaling(write(write_run, outputs, noise=3))
    assert drawing is not None
    assert drawing.axes[0].get_ylim()[0] >= 0
    assert not drawing.axes[0].texts


def test_what_is_uncertain_is_said_to_be(write_run: Write, outputs: Path) -> None:
    comparison = write(write_run, outputs, noise=0.8)
    found = reigns(curves(comparison), 1)
    assert min(part.share for part in found) < 0.9


def test_the_report_has_the_table_and_the_plot(write_run: Write, outputs: Path, tmp_path: Path) -> None:
    comparison = write(write_run, outputs, noise=0.005)
    write_report([comparison], [], [], [], tmp_path / "report")
    with (tmp_path / "report" / "tables" / "made_up-by-size.csv").open() as file:
        assert {row["best"] for row in csv.DictReader(file)} == {"2 bits", "4 bits"}
    assert "best width at each size" in (tmp_path / "report" / "index.html").read_text()


def test_two_sizes_make_no_curve(write_run: Write, outputs: Path) -> None:
    comparison = write(write_run, outputs, noise=0.005)
    few = [run for run in comparison.runs if run.metrics["size/total_bytes"] < 1200]
    assert size_table(compare(few)[0]) is None
