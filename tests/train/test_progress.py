"""What one sees while a run trains: lines, or a bar on a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from bitexp.common.console import UNLIMITED, Report
from bitexp.common.format import amount, duration, size


@pytest.fixture
def terminal() -> Report:
    """A report on a terminal of 100 columns that remembers what it was given."""
    report = Report()
    report.console = Console(
        file=io.StringIO(), force_terminal=True, width=100, highlight=False, soft_wrap=True, color_system=None
    )
    return report


def test_a_bar_on_a_terminal_leaves_no_trace(train: Any, terminal: Report) -> None:
    assert train("callbacks.progress=auto", report=terminal).status == "finished"
    said = terminal.console.file.getvalue()
    assert "epoch 2/2" in said
    assert "━" in said
    assert "\x1b[?25h" in said.rpartition("\x1b[?25l")[2], "the cursor comes back"
    assert not re.search(r"epoch \d/\d  step", said)


def test_the_bar_ends_with_a_failure(train: Any, terminal: Report) -> None:
    assert train("callbacks.progress=auto", "optimizer.lr=1e30", report=terminal).status == "failed"
    said = terminal.console.file.getvalue()
    assert "\x1b[?25h" in said.rpartition("\x1b[?25l")[2]
    assert "Failed: the training loss is nan" in said.rpartition("\x1b[?25h")[2]


def test_lines_elsewhere_about_twenty(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "trainer.epochs=60",
        "trainer.train_batches=1",
        "callbacks.progress=auto",
        "callbacks.diagnostics=false",
    ]
    train(*words, report=Report())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert 15 <= len(lines) <= 25
    pattern = r"epoch \d+/60  step \d+/60  loss \d\.\d+  val/accuracy [\d.]+  lr \S+  \d+ ms/step  \d+ s left"
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert lines[-1].startswith("epoch 60/60  step 60/60")
    assert lines[-1].endswith(" 0 s left")


def test_none_means_none(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train("callbacks.progress=none", report=Report())
    assert "step 8/8" not in capsys.readouterr().out


def test_what_is_no_terminal_has_no_width() -> None:
    assert Report().console.width == UNLIMITED


def test_numbers_for_people() -> None:
    assert [amount(n) for n in (10, 136_010, 5_360_000)] == ["10", "136,010", "5.36 M"]
    assert [size(n) for n in (12, 26_700, 21_400_000, 3.2e9)] == ["12 B", "26.7 kB", "21.4 MB", "3.20 GB"]
    assert [duration(s) for s in (0.4, 52, 185, 3753)] == ["0 s", "52 s", "3:05", "1:02:33"]
