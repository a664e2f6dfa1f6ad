"""Studies whose trials are cheap: a launch function stands for the run."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from bitexp.common.console import Report
from bitexp.sweep import workers as conduct
from bitexp.sweep.live_view import LiveView
from bitexp.sweep.storage import Store
from bitexp.sweep.study import ClaimedTrial, Definition, Limits, Study, TrialResult
from bitexp.sweep.workers import Workers

LR = FloatDistribution(1e-4, 1e-1, log=True)
SPACES = {
    "open": {"optimizer.lr": LR, "model.depth": IntDistribution(1, 9), "task.mixup": FloatDistribution(0, 1)},
    "finite": {
        "quantizer": CategoricalDistribution(["full", "binary", "ternary_mean"]),
        "model.depth": IntDistribution(2, 8, step=2),
    },
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for others are short, and nothing waits for the disk: no test cuts the power."""
    monkeypatch.setattr(conduct, "POLL", 0.05)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="session")
def define() -> Callable[..., Definition]:
    """The definition of a study over one of `SPACES`; a sampler by its name has seed 0."""

    def make(
        sampler: str | Mapping[str, Any] = "RandomSampler",
        space: str | Mapping[str, Any] = "open",
        directions: Any = ("maximize",),
        **changes: Any,
    ) -> Definition:
        parts: dict[str, Any] = {
            "fixed": ["seed=0"],
            "space": SPACES[space] if isinstance(space, str) else space,
            "objectives": ["val/accuracy", "size/total_bytes", "val/loss"][: len(directions)],
            "directions": directions,
            "sampler": {"name": sampler, "seed": 0} if isinstance(sampler, str) else sampler,
            "pruner": None,
        }
        return Definition(**parts | changes)

    return make


@pytest.fixture(scope="session")
def opened(define: Any) -> Callable[..., Study]:
    """A worker's view of the study at a place."""

    def make(
        place: Any,
        n_trials: int = 6,
        definition: Definition | None = None,
        name: str = "study",
        **limits: Any,
    ) -> Study:
        return Study(Store(str(place)), name, definition or define(), Limits(n_trials, **limits))

    return make


def score(trial: ClaimedTrial) -> TrialResult:
    """A run that ends well, its value of its parameters alone."""
    numbers = [float(v) if isinstance(v, int | float) else len(str(v)) for v in trial.params.values()]
    return TrialResult("finished", values=[sum(numbers)], run=f"runs/{trial.number}")


@pytest.fixture(scope="session")
def work_off(opened: Any) -> Callable[..., list[FrozenTrial]]:
    """Works the study at a place off and returns its trials."""

    def work(
        place: Any,
        n_trials: int = 6,
        launch: Callable[[ClaimedTrial], TrialResult] = score,
        workers: int = 1,
        report: Report | None = None,
        halt: Callable[[], None] = lambda: None,
        **further: Any,
    ) -> list[FrozenTrial]:
        study = opened(place, n_trials, **further)
        view = LiveView(report or Report(quiet=True), n_trials, workers, "max")
        try:
            Workers(study, launch, view).run(workers, halt)
            return list(study.trials())
        finally:
            study.close()

    return work


@pytest.fixture(scope="session")
def draws() -> Callable[[list[FrozenTrial]], list[dict[str, Any]]]:
    """What was drawn for each trial, by number."""
    return lambda trials: [trial.params for trial in trials]


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits until something holds."""

    def wait(holds: Callable[[], Any], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.01)

    return wait


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a journal may be."""
    return tmp_path / "studies" / "study.journal"


@pytest.fixture(scope="session")
def load() -> Callable[[Path], list[FrozenTrial]]:
    """The trials of the one study in a journal."""
    from bitexp.sweep.storage import open_journal

    def read(path: Path) -> list[FrozenTrial]:
        storage = open_journal(path)
        (summary,) = optuna.get_all_study_summaries(storage)
        return optuna.load_study(study_name=summary.study_name, storage=storage).trials

    return read


OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.name=RandomSampler")


@pytest.fixture
def sweep(command: Any, small: Any) -> Callable[..., Any]:
    """Gives a command of a study of the small run."""
    return lambda *words, **options: command("-m", *small, *OPTUNA, *words, **options)


@pytest.fixture
def studies(outputs: Path, load: Any) -> Callable[..., Any]:
    """The trials of each study, by the words that set it apart, or of the only one."""

    def read(name: str | None = None) -> Any:
        paths = {path.stem: path for path in outputs.glob("*/studies/*.journal")}
        if name is None:
            (path,) = paths.values()
        else:
            path = next(path for stem, path in paths.items() if name in stem.split("-"))
        return load(path)

    return read


# a PostgreSQL server

PASSWORD = "pa55@word"
NUMBERS = itertools.count()
REQUIRED = "BITEXP_REQUIRE_POSTGRESQL"
"""Set in the environment, it makes of a skipped test a failed one."""


def program(name: str) -> str | None:
    """A program of PostgreSQL; distributions keep those of the server off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    return str(places[-1]) if places else shutil.which(name)


def identity() -> dict[str, Any]:
    """The server refuses to run as root: another user's process, where we are root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@dataclass
class Server:
    """A private server with its data in a folder."""

    folder: Path
    host: str
    port: int
    identity: dict[str, Any]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def control(self, *words: str) -> None:
        command = [str(program("pg_ctl")), "-D", str(self.folder / "data"), "-w", "-t", "120", *words]
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, **self.identity
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log.read_text()

    def url(self, database: str, password: str | None = PASSWORD) -> str:
        secret = "" if password is None else f":{password.replace('@', '%40')}"
        return f"postgresql://bitexp{secret}@{self.host}:{self.port}/{database}"


@contextlib.contextmanager
def postgresql(host: str) -> Iterator[Server]:
    """A server for a while, in a folder that its user may enter: pytest's own are closed to others."""
    who = identity()
    folder = Path(tempfile.mkdtemp(prefix="bitexp-postgresql-"))
    try:
        server = serve(folder, host, who)
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def serve(folder: Path, host: str, who: dict[str, Any]) -> Server:
    """Makes a cluster in a folder and starts its server."""
    if who:
        os.chown(folder, who["user"], who["group"])
    (secret := folder / "password").write_text(PASSWORD)
    secret.chmod(0o644)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(folder, host, port, who)
    command = [str(program("initdb")), "-D", str(folder / "data"), "-U", "bitexp", "-A", "scram-sha-256"]
    command += [f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(command, cwd="/", check=True, capture_output=True, **who)
    (folder / "data" / "postgresql.auto.conf").write_text(
        f"listen_addresses = '{host}'\nport = {port}\nunix_socket_directories = ''\n"
        "max_connections = 50\nshared_buffers = 16MB\nfsync = off\n"
    )
    with (folder / "data" / "pg_hba.conf").open("a") as file:
        file.write("host all all samenet scram-sha-256\n")
    server.control("-l", str(server.log), "start")
    return server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running server, or no test."""
    missing = [name for name in ("initdb", "pg_ctl", "postgres") if program(name) is None]
    if missing:
        reason = f"no PostgreSQL server here: {', '.join(missing)} not found"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    with postgresql("127.0.0.1") as server:
        yield server


@pytest.fixture
def database(server: Server) -> str:
    """The URL of a new database."""
    import psycopg

    name = f"study{next(NUMBERS)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return server.url(name)


@pytest.fixture
def serving(server: Server) -> Any:
    """Another server for a while, that listens at some address."""
    return postgresql
