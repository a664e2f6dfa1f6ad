"""The password of a database is used, and neither printed nor kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PASSWORD = "pa55@word"


@pytest.mark.parametrize(
    "launcher",
    [(), pytest.param(("hydra/launcher=process", "logger=wandb"), marks=pytest.mark.slow)],
    ids=["basic", "process"],
)
def test_a_real_sweep_on_the_server_keeps_its_password_to_itself(
    launcher: tuple[str, ...], database: str, command: Any, small: Any, outputs: Path
) -> None:
    words = (
        "-m",
        *small,
        *launcher,
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=2",
        "optimizer.lr=interval(0.01,0.1)",
    )
    words += ("hydra.sweeper.pruner={name: MedianPruner}", f"hydra.sweeper.storage='{database}'")
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert ": 2 finished; budget 2. postgresql://bitexp:***@127.0.0.1:" in ended.out
    again = command(*words)
    assert "2 of 2 trials done" in again.out
    secrets = (PASSWORD, PASSWORD.replace("@", "%40"))
    for result in (ended, again):
        assert not any(secret in result.out + result.err for secret in secrets)
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


def test_a_password_may_come_from_the_environment(
    database: str, server: Any, monkeypatch: pytest.MonkeyPatch, work_off: Any
) -> None:
    url = server.url(database.rpartition("/")[2], password=None)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert len(work_off(url, 2)) == 2


@pytest.mark.parametrize(
    ("database_name", "password", "reason"),
    [
        ("postgres", "wrong", "password authentication failed"),
        ("nosuch", PASSWORD, 'database "nosuch" does not'),
    ],
)
def test_a_server_that_lets_nobody_in_is_told_in_words(
    database_name: str, password: str, reason: str, server: Any, command: Any, small: Any
) -> None:
    url = server.url(database_name, password)
    ended = command("-m", *small, "hydra/sweeper=optuna", "seed=0,1", f"hydra.sweeper.storage='{url}'")
    assert ended.code == 2
    assert reason in ended.err
    assert password.replace("@", "%40") not in ended.err
    assert PASSWORD not in ended.err
    assert "Traceback" not in ended.err
