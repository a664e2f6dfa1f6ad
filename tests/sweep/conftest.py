"""Studies whose trials are cheap, see `tests.support.studies`; in them nobody waits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial

from bitexp.sweep import workers
from tests.support import postgresql
from tests.support import studies as helpers
from tests.support.processes import Command, Ended


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for others are short, and nothing waits for the disk: no test cuts the power."""
    monkeypatch.setattr(workers, "POLL", 0.05)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def define() -> helpers.Define:
    """The definition of a study over one of `SPACES`; a sampler by its name has seed 0."""
    return helpers.define


@pytest.fixture(scope="session")
def opened() -> helpers.Opened:
    """A worker's view of the study at a place."""
    return helpers.opened


@pytest.fixture(scope="session")
def work_off() -> helpers.WorkOff:
    """Works the study at a place off and returns its trials."""
    return helpers.work_off


@pytest.fixture(scope="session")
def draws() -> helpers.Draws:
    """What was drawn for each trial, by number."""
    return helpers.draws


@pytest.fixture
def until() -> helpers.Until:
    """Waits until something holds."""
    return helpers.until


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a journal may be."""
    return tmp_path / "studies" / "study.journal"


@pytest.fixture(scope="session")
def load() -> helpers.Load:
    """The trials of the one study in a journal."""
    return helpers.load


OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.name=RandomSampler")


@pytest.fixture
def sweep(command: Command, small: tuple[str, ...]) -> Callable[..., Ended]:
    """Gives a command of a study of the small run."""
    return lambda *words, **options: command("-m", *small, *OPTUNA, *words, **options)


@pytest.fixture
def studies(outputs: Path) -> Callable[..., list[FrozenTrial]]:
    """The trials of each study, by the words that set it apart, or of the only one."""

    def read(name: str | None = None) -> list[FrozenTrial]:
        paths = {path.stem: path for path in outputs.glob("*/studies/*.journal")}
        if name is None:
            (path,) = paths.values()
        else:
            path = next(path for stem, path in paths.items() if name in stem.split("-"))
        return helpers.load(path)

    return read


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[postgresql.Server]:
    """A running server, or no test."""
    missing = [name for name in ("initdb", "pg_ctl", "postgres") if postgresql.program(name) is None]
    if missing:
        reason = f"no PostgreSQL server here: {', '.join(missing)} not found"
        if os.environ.get(postgresql.REQUIRED):
            pytest.fail(f"{reason}, and {postgresql.REQUIRED} is set")
        pytest.skip(reason)
    with postgresql.serving("127.0.0.1") as server:
        yield server


@pytest.fixture
def database(server: postgresql.Server) -> str:
    """The URL of a new database."""
    import psycopg

    name = f"study{next(NUMBERS)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return server.url(name)


@pytest.fixture
def serving(server: postgresql.Server) -> Callable[[str], AbstractContextManager[postgresql.Server]]:
    """Another server for a while, that listens at some address."""
    return postgresql.serving
