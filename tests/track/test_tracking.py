"""Trackers are keys of `logger`: any of them together, and none of them ends a run."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from pytorch_lightning.loggers.logger import DummyLogger

from bitexp.common.console import Report
from bitexp.common.errors import Pruned, UserError
from bitexp.config.schema import Settings, read_settings
from bitexp.track.folder import RunFolder
from bitexp.track.trackers import TRACKERS, Tracker
from bitexp.track.tracking import tracking

CONF = Path(__file__).parents[2] / "conf"


def test_every_tracker_has_its_yaml() -> None:
    assert {path.stem for path in (CONF / "logger").glob("*.yaml")} == {*TRACKERS.names(), "csv"}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["wandb"]),
        (["logger=csv"], []),
        (["logger=[]"], []),
        (["logger=tensorboard"], ["tensorboard"]),
        (["logger=[wandb,csv]"], ["wandb"]),
        (["logger=[csv,wandb]"], ["wandb"]),
        (["logger=[wandb,tensorboard]"], ["wandb", "tensorboard"]),
        (["logger=[mlflow,wandb,tensorboard]"], ["mlflow", "wandb", "tensorboard"]),
        (["logger.wandb=null"], []),
    ],
)
def test_what_is_named_is_tracked(words: list[str], names: list[str], compose_config: Any) -> None:
    settings = read_settings(compose_config(*words))
    assert [name for name, arguments in settings.logger.items() if arguments is not None] == names


def test_two_trackers_of_one_run_and_none_of_another(train: Any) -> None:
    outcome = train("logger=[wandb,tensorboard]")
    assert list(outcome.folder.glob("wandb/offline-run-*/*.wandb"))
    assert list(outcome.folder.glob("tensorboard/events.*"))
    outcome = train("seed=1", "logger=csv")
    assert not {"wandb", "tensorboard"} & {path.name for path in outcome.folder.iterdir()}


def test_no_tracker_and_no_file_gets_a_secret(command: Any, small: Any, outputs: Path) -> None:
    secret = "pa55@word"
    ended = command(
        *small[1:], "logger=[wandb,tensorboard]", f"logger.wandb.tags=['http://me:{secret}@host']"
    )
    assert ended.code == 0, ended.err
    assert "not tracked" not in ended.out
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert {"config.yaml", "overrides.yaml", "provenance.json", "hparams.yaml"} <= {
        path.name for path in files
    }
    assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("logger.wandb.mode=onlin", r"logger.wandb.mode=onlin should be 'offline' or 'online'"),
        (
            "+logger.wandb.projekt=x",
            r"unknown key 'logger.wandb.projekt'. Did you mean 'logger.wandb.project'",
        ),
        ("~logger.wandb.tags", r"the key 'logger.wandb.tags' is missing"),
        ("+logger.tensorbord={}", r"unknown tracker 'tensorbord'. Did you mean 'tensorboard'"),
        ("logger.wandb=offline", r"logger.wandb=offline should be a section of keys"),
    ],
)
def test_a_mistake_is_explained_before_any_work(words: str, said: str, train: Any, tiny: Any) -> None:
    base = [word for word in tiny if word != "logger=csv"]
    with pytest.raises(UserError, match=said):
        train(words, base=base)


# a new tracker is one class


class Memory(DummyLogger):
    """Keeps what it gets; `fails` after so many values."""

    def __init__(self, fails: float) -> None:
        super().__init__()
        self.fails, self.got, self.ended = fails, [], ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        if len(self.got) >= self.fails:
            raise ConnectionError("gone")
        self.got.append(args)

    def finalize(self, status: str) -> None:
        self.ended = status


class Fake(Tracker):
    """A tracker without a service."""

    def __init__(self, *, fails: float = float("inf")) -> None:
        self.logger = Memory(fails)

    def start(self, settings: Settings, folder: RunFolder) -> Any:
        return self.logger


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    """Registers it, and gives the loggers that were made."""
    made: list[Memory] = []

    class Registered(Fake):
        def start(self, settings: Settings, folder: RunFolder) -> Any:
            made.append(self.logger)
            return self.logger

    monkeypatch.setattr(TRACKERS, "_entries", {**TRACKERS._entries, "fake": Registered})
    return made


def test_a_new_tracker_needs_a_class_and_nothing_else(train: Any, fake: list[Memory]) -> None:
    outcome = train("+logger.fake={}")
    (logger,) = fake
    assert outcome.status == "finished"
    assert logger.ended == "success"
    names = {name for values, _ in logger.got for name in values}
    assert {"train/loss", "val/accuracy", "quant/flip_rate", "test_packed/accuracy"} <= names


def test_one_that_fails_on_the_way_ends_no_run(
    train: Any, fake: list[Memory], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = train("+logger.fake.fails=2", report=Report())
    (logger,) = fake
    assert outcome.status == "finished"
    assert len(logger.got) == 2
    said = "fake failed, so this run is not tracked there any more (metrics.csv has everything): gone"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.parametrize(("error", "ended"), [(None, "success"), (Pruned, "success"), (OSError, "failed")])
def test_the_service_hears_how_it_ended(error: type[Exception] | None, ended: str) -> None:
    tracker, unused = Fake(), cast(Any, None)
    with (
        contextlib.suppress(Pruned, OSError),
        tracking({"fake": tracker}, unused, unused, Report()) as loggers,
    ):
        loggers[0].finalize("success")  # as Lightning does after the training
        assert tracker.logger.ended == ""
        if error is not None:
            raise error("x")
    assert tracker.logger.ended == ended


def test_what_trackers_see_of_the_command_line_holds_no_secret(
    compose_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed, seen = ["seed=1", "+data.api_key=pa55word"], []
    monkeypatch.setattr(sys, "argv", ["bitexp", *typed])

    class Looking(Tracker):
        def start(self, settings: Settings, folder: RunFolder) -> Any:
            seen.append(sys.argv[1:])
            return DummyLogger()

        def finish(self, logger: Any, failed: bool) -> None:
            seen.append(sys.argv[1:])

    folder, settings = RunFolder(tmp_path), read_settings(compose_config())
    with tracking({"looking": Looking()}, settings, folder, Report(quiet=True)):
        seen.append(sys.argv[1:])
    assert seen == [["seed=1", "+data.api_key=***"]] * 3
    assert sys.argv[1:] == typed
