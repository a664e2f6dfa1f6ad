"""wandb: offline, quiet, asks for nothing, is closed in every case, and costs no run when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

import bitexp.run.fit
from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.track.metrics import rows
from bitexp.track.trackers.wandb import LAUNCH, Wandb, imported, nothing_staged, remove

KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_MODE", "NETRC")
KEYS += ("WANDB_SAVE_CODE",)


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody is logged in, and there is nobody to ask."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    return tmp_path


@pytest.fixture
def tracked(train: Any, small: Any) -> Callable[..., Any]:
    """Makes a small run that wandb follows."""
    words = [word for word in small if word != "logger=csv"]
    return lambda *more, **options: train(*more, base=words, **options)


def records(folder: Path) -> dict[str, list[Any]]:
    """What is in the one wandb file of a run's folder, by type."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, list[Any]] = {}
    for record in map(json.loads, lines):
        found.setdefault(record["type"], []).append(record.get(record["type"]))
    return found


def test_a_run_is_written_offline_and_closed(tracked: Any, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = tracked("seed=1", report=Report(quiet=True))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    found = records(outcome.folder)
    (run,) = found["run"]
    assert run["run_id"] == outcome.folder.name
    assert run["project"] == "bitexp"
    assert run["run_group"] == "first_steps/ternary_mean"
    assert run["display_name"] == f"first_steps-ternary_mean-seed1-{outcome.folder.name[:4]}"
    assert {"ternary_mean", "kernel:auto"} <= set(run["tags"])
    assert run["config"]["update"]["optimizer"]["name"] == "adamw"
    assert [record["exit_code"] for record in found["exit"]] == [0]
    text = json.dumps(found["history"])
    for name in ("train/loss", "val/accuracy", "quant/flip_rate", "test/accuracy", "test_packed/accuracy"):
        assert name in text
    kept = {path.name for path in outcome.folder.glob("wandb/offline-run-*/files/*")}
    assert kept == {"requirements.txt"}  # no code, and no changes of a checkout


@pytest.mark.parametrize("home", [None, "/dev/null/nobody"])
def test_a_home_that_cannot_be_written_is_not_told(
    home: str | None,
    tracked: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """wandb's service has a log in the home, and would write it on the screen."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    setup = imported(tmp_path / "scraps").sdk.wandb_setup
    monkeypatch.setattr(setup, "_singleton", None)  # a service of its own
    outcome = tracked("seed=2", report=Report(quiet=True))
    setup.teardown()
    assert capfd.readouterr() == ("", "")
    assert list(outcome.folder.glob("wandb/offline-run-*"))
    assert "XDG_CACHE_HOME" not in os.environ


def test_a_preset_is_a_group_of_its_own(tracked: Any) -> None:
    (run,) = records(tracked("quantizer=reloaded").folder)["run"]
    assert run["run_group"] == "first_steps/reloaded"
    assert "reloaded" in run["tags"]
    assert "ternary_median" not in run["tags"]
    assert run["config"]["update"]["quantizer"]["name"] == "reloaded"


@pytest.mark.slow
def test_each_run_of_a_process_has_its_own_also_after_a_failure(tracked: Any) -> None:
    import wandb

    failed = tracked("optimizer.lr=1e30")
    assert failed.result["kind"] == "diverged"
    assert wandb.run is None
    finished = tracked()
    assert finished.status == "finished"
    assert wandb.run is None
    for outcome, code in ((failed, 1), (finished, 0)):
        assert [record["exit_code"] for record in records(outcome.folder)["exit"]] == [code]
    assert records(failed.folder)["run"][0]["run_id"] != records(finished.folder)["run"][0]["run_id"]


def test_a_run_that_resumes_keeps_its_wandb_id(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bitexp.run.road, "measure", lambda *_: 1 / 0)
        assert tracked().status == "failed"
    outcome = tracked()
    assert outcome.status == "finished"
    found = records(outcome.folder)  # one folder to upload
    assert found["run"][0]["run_id"] == outcome.folder.name
    sent = [
        (row["item"].get("trainer/global_step"), row["item"].get("train/loss")) for row in found["history"]
    ]
    kept = [(step, values.get("train/loss")) for step, values in rows(outcome.folder / "metrics.csv")]
    assert [row for row in sent if row[1]] == [row for row in kept if row[1]]


def test_its_own_variable_switches_it_off(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    outcome = tracked("seed=2")
    assert outcome.status == "finished"
    assert not list(outcome.folder.glob("wandb/offline-run-*"))


START = """
import sys, wandb
from bitexp.track.trackers.wandb import LAUNCH, nothing_staged
with nothing_staged():
    run = wandb.init(dir=sys.argv[1], mode="offline", settings=wandb.Settings(silent=True, console="off"))
run.finish()
print(*(name for name in sys.modules if name.startswith("wandb.sdk.launch")))
"""


def test_a_start_does_not_import_the_launcher_of_jobs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", START, tmp_path], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_where_inputs_can_be_staged_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModuleType(LAUNCH)
    monkeypatch.setitem(sys.modules, LAUNCH, real)
    with nothing_staged():
        assert sys.modules[LAUNCH] is real
    assert sys.modules[LAUNCH] is real


def test_temporary_folders_of_the_dead_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dead", "living"):
        (tmp_path / name / "media").mkdir(parents=True)
        (tmp_path / f"{name}.lock").touch()
    monkeypatch.delitem(sys.modules, "wandb")
    made = []

    def import_module(name: str) -> None:
        made.append(Path(tempfile.mkdtemp("wandb-media")))
        sys.modules["wandb"] = ModuleType("wandb")

    monkeypatch.setattr("importlib.import_module", import_module)
    with FileLock(tmp_path / "living.lock"):
        imported(tmp_path)
    assert (tmp_path / "living/media").is_dir()
    assert not (tmp_path / "dead").exists()
    assert made[0].parent.parent == tmp_path
    assert tempfile.gettempdir() != str(made[0].parent)
    remove(made[0].parent.with_suffix(".lock"), os.getpid() + 1)  # as in a child that was forked
    assert made[0].exists()


def test_a_run_goes_on_where_wandb_cannot_start(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def broken(**_: Any) -> None:
        raise OSError("no socket")

    monkeypatch.setattr(wandb, "init", broken)
    outcome = tracked(report=Report())
    assert outcome.status == "finished"
    assert (
        "wandb could not start, so this run is not tracked there (metrics.csv has everything): no socket"
        in capsys.readouterr().out
    )
    assert (outcome.folder / "metrics.csv").stat().st_size > 100


def test_a_run_goes_on_where_wandb_cannot_write(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = bitexp.run.road.RunFolder.begin

    def begin_and_block(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        (self.path / "wandb").write_text("a file where wandb wants a folder")

    monkeypatch.setattr(bitexp.run.road.RunFolder, "begin", begin_and_block)
    outcome = tracked(report=Report())
    assert outcome.status == "finished"
    assert outcome.result["metrics"]["test/loss"] == outcome.result["metrics"]["test_packed/loss"]


def test_a_run_counts_where_wandb_cannot_finish(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    init = wandb.init

    def init_badly(**options: Any) -> Any:
        run = init(**options)
        finish = run.finish

        def finish_and_fail(exit_code: int) -> None:
            finish(exit_code=exit_code)
            raise ConnectionError("gone")

        run.finish = finish_and_fail
        return run

    monkeypatch.setattr(wandb, "init", init_badly)
    assert tracked(report=Report()).status == "finished"
    assert "wandb could not finish (metrics.csv has everything): gone" in capsys.readouterr().out


# the key


ONLINE = Wandb(mode="online", project="bitexp", entity=None, tags=[])


def test_online_without_a_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs a wandb key .* run `wandb login` once"):
        ONLINE.check()


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_online_with_a_key_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x" * 40)
    ONLINE.check()


@pytest.mark.parametrize("place", [".netrc", "elsewhere"])
def test_online_with_a_stored_key(place: str, no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (no_account / place).write_text("machine api.wandb.ai\n  login user\n  password " + "x" * 40 + "\n")
    (no_account / place).chmod(0o600)
    if place != ".netrc":
        monkeypatch.setenv("NETRC", str(no_account / place))
    ONLINE.check()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    with pytest.raises(UserError, match="needs a wandb key"):
        ONLINE.check()
    (no_account / place).write_text("machine wandb.example.org:8080 login user password " + "x" * 40)
    ONLINE.check()


def test_a_broken_netrc_is_no_key(no_account: Path) -> None:
    (no_account / ".netrc").write_text("no such word")
    with pytest.raises(UserError, match="needs a wandb key"):
        ONLINE.check()
