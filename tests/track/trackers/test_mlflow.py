"""MLflow: a run there for each run here, found again when it resumes; nothing leaves this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import bitexp.run.road
from bitexp.common.console import Report

pytestmark = pytest.mark.filterwarnings(
    # 2026-11, mlflow-skinny 3.17 with SQLAlchemy 2.1
    "ignore:The ``noload`` loader strategy is deprecated",
)


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, whatever the environment says, and nothing of ours left in it."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: to make one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def runs(database: Path, name: str = "first_steps") -> list[Run]:
    """All runs of an experiment."""
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_a_run_is_kept_beside_the_outputs_and_continued(
    train: Any, empty: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.mkdir(parents=True)
    shutil.copy(empty, outputs / "mlflow.db")
    with monkeypatch.context() as patch:
        patch.setattr(bitexp.run.road, "measure", lambda *_: 1 / 0)
        assert train("logger=mlflow").status == "failed"
    (run,) = runs(outputs / "mlflow.db")
    assert run.info.status == "FAILED"
    outcome = train("logger=mlflow", "+logger.mlflow.tags.place=here")
    assert outcome.status == "finished"
    (run,) = runs(outputs / "mlflow.db")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"first_steps-ternary_mean-seed0-{outcome.folder.name[:4]}"
    assert (run.data.tags["bitexp.run"], run.data.tags["quantizer"]) == (outcome.folder.name, "ternary_mean")
    assert run.data.params["optimizer/name"] == "adamw"
    measured = outcome.result["metrics"]
    assert {name: run.data.metrics[name] for name in measured} == pytest.approx(measured)
    assert {"train/loss", "quant/flip_rate"} <= set(run.data.metrics)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.slow
def test_the_environment_or_a_key_may_name_another_place(
    train: Any, empty: Path, tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one.db", "two.db"):
        shutil.copy(empty, tmp_path / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/one.db")
    train("logger=mlflow")
    train("seed=1", "logger=mlflow", f"logger.mlflow.uri=sqlite:///{tmp_path}/two.db")
    assert len(runs(tmp_path / "one.db")) == len(runs(tmp_path / "two.db")) == 1
    assert not (outputs / "mlflow.db").exists()


def test_a_server_that_is_away_ends_no_run(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    outcome = train("logger=mlflow", "logger.mlflow.uri=http://127.0.0.1:9", report=Report())
    assert outcome.status == "finished"
    assert "mlflow could not start, so this run is not tracked there" in capsys.readouterr().out
