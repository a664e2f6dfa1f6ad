"""The parallel coordinates of a sweep: where each value stands on its axis."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitexp.report import figure
from bitexp.report.compare import compare
from bitexp.report.parallel import parallel, place
from bitexp.report.runs import read_runs
from tests.support.run_folders import WriteRun


def test_choices_stand_apart_evenly_and_numbers_by_their_size() -> None:
    heights, labels = place(["b", "a", "c", "b"], ["a", "b", "c"], [0.0, 0.0, 0.0, 0.02])
    assert heights == [0.5, 0.0, 1.0, 0.52]
    assert labels == [(0.0, "a"), (0.5, "b"), (1.0, "c")]
    assert place([0.0, 1.0, 4.0], [], [9.0] * 3)[0] == [0.0, 0.25, 1.0]
    heights, labels = place([0.001, 0.01, 0.1], [], [9.0] * 3)
    assert heights == pytest.approx([0.0, 0.5, 1.0])
    assert [labels[0][1], labels[-1][1]] == ["0.001", "0.1"]


def test_a_sweep_has_a_line_for_each_setting_and_the_best_of_a_row_is_thicker(
    write_run: WriteRun, outputs: Path
) -> None:
    for quantizer in ("full", "binary"):
        for number, lr in enumerate((0.001, 0.002, 0.004)):
            for decay in (0.0, 0.1):
                keys = {"optimizer__lr": lr, "optimizer__weight_decay": decay}
                write_run(quantizer, 0, 0.5 + number / 10 + decay, validated=0.5 + number / 10, **keys)
    (comparison,) = compare(read_runs([outputs])[0])
    with figure.style():
        drawing = parallel(comparison)
    assert drawing is not None
    (panel,) = drawing.axes
    names = [label.get_text() for label in panel.get_xticklabels()]
    assert names == ["precision", "lr", "weight decay", "val/accuracy"]
    (lines,) = panel.collections
    drawn = list(zip(lines.get_segments(), lines.get_linewidths(), strict=True))
    assert len(drawn) == 12
    assert all(len(line) == 4 for line, _ in drawn)
    thick = [line for line, width in drawn if width > 2]
    assert [line[-1][1] for line in thick] == [1.0, 1.0]
    assert {round(line[0][1]) for line in thick} == {0, 1}


def test_a_single_key_is_no_sweep_of_several(write_run: WriteRun, outputs: Path) -> None:
    for number in range(8):
        write_run("binary", 0, 0.5, validated=0.5, optimizer__lr=0.001 * (number + 1))
    (comparison,) = compare(read_runs([outputs])[0])
    assert parallel(comparison) is None
