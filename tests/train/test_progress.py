"""What one sees while a run trains: lines, or a bar on a terminal."""

from __future__ import annotations

import csv
import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from bitexp.common.console import UNLIMITED, Report
from bitexp.common.format import amount, duration, size
from bitexp.tasks import Task
from bitexp.tasks.classification import ImageClassification
from bitexp.track.metrics import rows
from bitexp.train.progress import Throughput, peak_memory


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


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The training loss of every batch."""
    seen: list[float] = []
    step = Task.training_step

    def note(self: Task, *arguments: Any) -> Any:
        loss = step(self, *arguments)
        seen.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(Task, "training_step", note)
    return seen


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["trainer.log_every=3"], {3: 3, 4: 4, 6: 6, 8: 8}),
        (["trainer.accumulate=2", "trainer.log_every=1"], {1: 2, 2: 4, 3: 6, 4: 8}),
        (["trainer.accumulate=4"], {1: 4, 2: 8}),
        (["trainer.train_batches=7", "trainer.accumulate=2"], {4: 7, 8: 14}),
        (["trainer.max_steps=6", "trainer.log_every=50"], {4: 4, 6: 6}),
    ],
)
def test_the_loss_is_the_mean_since_the_last_line(
    words: list[str], ends: dict[int, int], train: Any, losses: list[float]
) -> None:
    with (train(*words).folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "train/loss"]
    assert [int(row["step"]) for row in rows] == list(ends)
    starts = [0, *ends.values()]
    for row, start, end in zip(rows, starts, ends.values(), strict=False):
        assert float(row["value"]) == pytest.approx(sum(losses[start:end]) / (end - start), rel=1e-6)


def test_what_was_not_measured_is_left_out() -> None:
    schedule = SimpleNamespace(lr=0.1, total=lambda _: 8)
    trainer: Any = SimpleNamespace(global_step=4)
    throughput = Throughput(50)
    assert throughput.summary(trainer, schedule, {"val/accuracy": 0.5}) == "val/accuracy 0.5  lr 1.00e-01"
    throughput.loss, throughput.step_seconds = 0.25, 0.5
    assert throughput.summary(trainer, schedule, {}) == "loss 0.250  lr 1.00e-01  500 ms/step  2 s left"


def test_none_means_none(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train("callbacks.progress=none", report=Report())
    assert "step 8/8" not in capsys.readouterr().out


def test_what_is_no_terminal_has_no_width() -> None:
    assert Report().console.width == UNLIMITED


def test_numbers_for_people() -> None:
    assert [amount(n) for n in (10, 136_010, 5_360_000)] == ["10", "136,010", "5.36 M"]
    assert [size(n) for n in (12, 26_700, 21_400_000, 3.2e9)] == ["12 B", "26.7 kB", "21.4 MB", "3.20 GB"]
    assert [duration(s) for s in (0.4, 52, 185, 3753)] == ["0 s", "52 s", "3:05", "1:02:33"]


def test_a_logged_batch_tells_rate_gradient_and_accuracy(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def note(parameters: Any, limit: float) -> Tensor:
        norm = clip(parameters, limit)  # that before clipping
        norms.append(float(norm))
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    outcome = train("trainer.log_every=3", "trainer.gradient_clip=0.01", "trainer.max_steps=7")
    logged = {step: values for step, values in rows(outcome.folder / "metrics.csv") if "train/loss" in values}
    assert list(logged) == [3, 4, 6, 7]
    for step, values in logged.items():
        assert values["train/grad_norm"] == pytest.approx(norms[step - 1], rel=1e-5)
        assert 0 <= values["train/accuracy"] <= 1
        assert 0 < values["train/lr"] <= 0.01
        assert "memory/peak_bytes" not in values


def test_nothing_of_that_is_computed_for_other_batches(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    norms: list[int] = []
    monkeypatch.setattr(
        ImageClassification, "measured", lambda self, *_: measured.append(self.global_step) or {}
    )
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda all: norms.append(1) or torch.ones(()))
    train("trainer.log_every=3")
    assert measured == [2, 3, 5, 7]
    assert len(norms) == 4


def test_on_a_gpu_the_most_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_memory(torch.device("cpu")) == {}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    assert peak_memory(torch.device("cuda", 1)) == {"memory/peak_bytes": 1001.0}
