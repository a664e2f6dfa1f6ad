"""Trials that were made before the code was edited: they are named when their study goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from bitexp.sweep import older_code
from bitexp.sweep.older_code import about_older_code
from tests.support.training import Train


def trial(number: int, run: Path, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    values = [0.5] if state == TrialState.COMPLETE else None
    precision = CategoricalDistribution(["binary", "full"])
    found = create_trial(
        state=state, values=values, params={"quantizer": "binary"},
        distributions={"quantizer": precision}, user_attrs={"run": str(run)},
    )  # fmt: skip
    found.number = number
    return found


def of_code(run: Path, place: Path, changes: Mapping[str, Any]) -> Path:
    """The run as one that was made by other code."""
    place.mkdir()
    (place / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    record = json.loads((run / "provenance.json").read_text())
    record["attempts"][-1].update(changes)
    (place / "provenance.json").write_text(json.dumps(record))
    return place


def test_trials_of_other_code_are_named(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("quantizer=binary").folder
    same = [trial(0, run), trial(1, tmp_path / "gone"), trial(2, run, TrialState.PRUNED)]
    assert about_older_code(same) is None
    edited = of_code(run, tmp_path / "edited", {"code": {"quantizer": "4d6c0ea3"}})
    older = of_code(run, tmp_path / "older", {"source": "f85255c0c0259bf8"})
    others = [*same, trial(3, edited), trial(4, older, TrialState.PRUNED), trial(5, older, TrialState.FAIL)]
    said = about_older_code(others)
    assert said is not None
    assert said.startswith("2 trials of this study (3, 4) were made by other code than that of now")
    assert "rerun=older" in said
    assert str(about_older_code([trial(3, edited)])).startswith("1 trial of this study (3) was made")
    monkeypatch.setattr(older_code, "code_now", lambda run: None)  # it cannot be told: the trials will
    assert about_older_code(others) is None
