"""Energy by counters: idle subtracted, ranges that begin anew, and words where nothing counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bitexp.run import energy
from bitexp.run.energy import INFERENCE, TRAINING, Meter, Rapl
from tests.support.training import Train


class Clock:
    """Time that passes only when it is told to, and a counter of a machine that takes `watts` meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.watts, self.spent = 0.0, 10.0, 5.0
        monkeypatch.setattr(energy.time, "monotonic", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.spent += seconds * self.watts

    def joules(self) -> float:
        return self.spent


def test_what_the_idle_machine_takes_is_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter([clock, clock], clock.sleep)
    assert meter.idle_watts == 20.0
    clock.watts = 25.0
    with meter.measure() as spent:
        clock.sleep(4)
    assert spent.joules == pytest.approx(2 * 4 * 15.0)


def test_an_inference_is_repeated_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter([clock], clock.sleep)
    clock.watts = 30.0
    calls = itertools.count()

    def infer() -> None:
        next(calls)
        clock.sleep(0.25)

    assert meter.of_inference(infer, 8) == pytest.approx(20.0 * 0.25 / 8)
    assert next(calls) == 5


def test_a_counter_that_begins_anew_goes_on(tmp_path: Path) -> None:
    (tmp_path / "max_energy_range_uj").write_text("5000000\n")
    (tmp_path / "energy_uj").write_text("4000000\n")
    counter = Rapl(tmp_path)
    seen = []
    for microjoules in (4_500_000, 500_000, 100_000):
        (tmp_path / "energy_uj").write_text(f"{microjoules}\n")
        seen.append(counter.joules())
    assert seen == [4.5, 5.5, 10.1]


def test_without_a_counter_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("1")  # and no energy_uj that can be read
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.counters.__wrapped__("cpu") == ()
    meter = Meter(())
    with meter.measure() as spent:
        pass
    assert spent.joules is None
    assert meter.of_inference(lambda: None, 1) is None


def test_a_run_measures_what_it_can(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = itertools.count(start=0.0, step=1e6)
    counter = type("Fast", (), {"joules": lambda self: next(counting)})()
    monkeypatch.setattr(energy, "IDLE", 0.01)
    monkeypatch.setattr(energy, "LOOP", 0.01)
    outcome = train()
    assert not {INFERENCE, TRAINING} & set(outcome.result["metrics"])
    assert "idle subtracted: not measured" in (outcome.folder / "MODEL_CARD.md").read_text()
    meter = Meter([counter])
    meter.idle_watts = 0.0
    monkeypatch.setattr(energy, "meter", lambda device: meter)
    monkeypatch.setattr("bitexp.run.road.meter", lambda device: meter)
    outcome = train("seed=7")
    assert {INFERENCE, TRAINING} < set(outcome.result["metrics"])
    assert "idle subtracted: not measured" not in (outcome.folder / "MODEL_CARD.md").read_text()
