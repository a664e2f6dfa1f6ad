"""metrics.csv is appended, cut back to a checkpoint, and read again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitexp.track.metrics import HEADER, MetricsCsv, send


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsCsv:
    return MetricsCsv(tmp_path / "metrics.csv")


def lines(metrics: MetricsCsv) -> list[str]:
    return metrics.path.read_text().splitlines()


def test_a_line_is_a_value(metrics: MetricsCsv) -> None:
    metrics.log_metrics({"a": 0.1, "epoch": 2.0, "b": 3}, 7)
    metrics.log_metrics({"c": float("nan")}, 8)
    assert not metrics.path.exists()
    metrics.save()
    assert lines(metrics) == ["step,epoch,metric,value", "7,2,a,0.1", "7,2,b,3", "8,,c,nan"]
    assert HEADER == "step,epoch,metric,value\n"


def test_another_attempt_appends(metrics: MetricsCsv) -> None:
    metrics.log_metrics({"a": 1.0}, 1)
    metrics.finalize("success")
    again = MetricsCsv(metrics.path)
    again.log_metrics({"a": 2.0}, 2)
    again.save()
    assert lines(metrics) == ["step,epoch,metric,value", "1,,a,1", "2,,a,2"]


def test_what_a_checkpoint_kept_is_put_back(metrics: MetricsCsv) -> None:
    metrics.log_metrics({"a": 1, "epoch": 0}, 1)
    kept = metrics.content()
    metrics.log_metrics({"a": 2, "epoch": 0}, 2)
    metrics.flush()
    metrics.log_metrics({"a": 3, "epoch": 0}, 3)
    assert metrics.restore(kept)
    assert metrics.content() == kept == b"step,epoch,metric,value\n1,0,a,1\n"
    metrics.path.write_bytes(b"")
    assert not metrics.restore(kept)
    assert metrics.content() == kept
    assert metrics.restore(b"")
    assert metrics.values("a") == {}


def test_many_values_do_not_wait(metrics: MetricsCsv) -> None:
    metrics.log_metrics({f"m{number}": 0.0 for number in range(600)}, 1)
    assert len(lines(metrics)) == 601


def test_the_last_values_or_those_of_a_step(metrics: MetricsCsv) -> None:
    metrics.log_metrics({"val/a": 1.0, "test/a": 5.0}, 1)
    metrics.log_metrics({"val/a": 2.0, "val/b": 0.25}, 2)
    assert metrics.values("val/") == {"val/a": 2.0, "val/b": 0.25}
    assert metrics.values("val/", 1) == {"val/a": 1.0}
    assert metrics.values("none/") == {}


def test_every_logger_gets_the_step_and_the_epoch() -> None:
    got: list[Any] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: got.append((values, step)))
    trainer: Any = SimpleNamespace(loggers=[logger, logger], current_epoch=3, global_step=40)
    send(trainer, {"a": 1.0})
    send(trainer, {})
    assert got == [({"a": 1.0, "epoch": 3}, 40)] * 2
