"""TensorBoard gets what metrics.csv gets, in the run's folder."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bitexp.common.errors import UserError
from bitexp.track.trackers.tensorboard import TensorBoard


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in the event files of a run, by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder / "tensorboard").glob("events.*")):
        events = EventAccumulator(str(path)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((e.step, e.value) for e in events.Scalars(name))
    return found


def test_event_files_hold_what_metrics_csv_holds(train: Any) -> None:
    outcome = train("logger=tensorboard")
    found = written(outcome.folder)
    with (outcome.folder / "metrics.csv").open() as file:
        expected = [(row["metric"], int(row["step"]), float(row["value"])) for row in csv.DictReader(file)]
    assert len(expected) > 20
    for name, step, value in expected:
        assert (step, pytest.approx(value, rel=1e-6)) in found[name]
    assert set(found) - {name for name, _, _ in expected} == {"epoch"}
    text = (outcome.folder / "tensorboard" / "hparams.yaml").read_text()
    assert "name: ternary_mean" in text


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    gone = lambda name: None if name == "tensorboard" else find(name)  # noqa: E731
    monkeypatch.setattr("bitexp.track.trackers.tracker.find_spec", gone)
    with pytest.raises(
        UserError, match=r"needs the package tensorboard: pip install 'bitexp\[tensorboard\]'"
    ):
        TensorBoard().check()
