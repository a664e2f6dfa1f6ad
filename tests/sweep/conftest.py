"""Studies whose trials are cheap, see `tests.support.studies`; in them nobody waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitexp.sweep import workers
from tests.support import studies


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for others are short, and nothing waits for the disk: no test cuts the power."""
    monkeypatch.setattr(workers, "POLL", 0.05)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def define() -> studies.Define:
    """The definition of a study over one of `SPACES`; a sampler by its name has seed 0."""
    return studies.define


@pytest.fixture(scope="session")
def opened() -> studies.Opened:
    """A worker's view of the study at a place."""
    return studies.opened


@pytest.fixture(scope="session")
def work_off() -> studies.WorkOff:
    """Works the study at a place off and returns its trials."""
    return studies.work_off


@pytest.fixture(scope="session")
def draws() -> studies.Draws:
    """What was drawn for each trial, by number."""
    return studies.draws


@pytest.fixture
def until() -> studies.Until:
    """Waits until something holds."""
    return studies.until


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a journal may be."""
    return tmp_path / "studies" / "study.journal"


@pytest.fixture(scope="session")
def load() -> studies.Load:
    """The trials of the one study in a journal."""
    return studies.load
