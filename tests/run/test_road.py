"""One run: asked again it is found, its folder says everything, and it says what it is."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from safetensors.torch import load_file

import bitexp.run.earlier
import bitexp.run.road
from bitexp.common.console import Report
from bitexp.config.schema import read_settings
from bitexp.run.fit import without_empty_hooks
from bitexp.track.checkout import DIFF
from bitexp.track.checkpoint_files import load_checkpoint
from bitexp.track.provenance import source_fingerprint


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# asked again


def test_asked_again_a_finished_run_is_found(
    train: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train()
    assert first.trained
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(bitexp.run.road, "make", lambda *_: pytest.fail("trained again"))
    again = train(report=Report())
    assert (again.trained, again.folder, again.result) == (False, first.folder, first.result)
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().out
    assert "finished before; nothing was trained" in said
    assert "different version" not in said


def test_what_cannot_change_a_result_finds_the_same_run(train: Any) -> None:
    first = train()
    again = train("trainer.log_every=7", "data.workers=1", "callbacks.progress=lines", "logger=wandb")
    assert (again.trained, again.folder) == (False, first.folder)


def test_a_run_made_by_a_different_version_is_reported(
    train: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    monkeypatch.setattr(bitexp.run.earlier, "source_fingerprint", lambda: "other")
    assert not train(report=Report()).trained
    said = capsys.readouterr().out
    assert "This run was made by a different version of bitexp. Use rerun=true to repeat it." in said


def test_a_rerun_keeps_the_old_folder(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = train()
    second = train("rerun=true", report=Report())
    third = train("rerun=true")
    assert first.folder == second.folder == third.folder
    assert second.trained
    kept = list(first.folder.parent.glob(".replaced/*/result.json"))
    assert len(kept) == 2
    assert "rerun=true: the earlier run was moved to" in capsys.readouterr().out
    assert not train().trained


def test_a_grid_runs_only_its_missing_cells(command: Any, small: Any, outputs: Path) -> None:
    ended = command("-m", *small, "quantizer=full,binary", "seed=0")
    assert ended.code == 0, ended.err
    assert "2 jobs: 2 trained, 0 finished before" in ended.out
    ended = command("-m", *small, "quantizer=full,binary", "seed=0,1")
    assert ended.code == 0
    assert "4 jobs: 2 trained, 2 finished before, 0 not finished" in ended.out
    assert len(list(outputs.glob("*/*/result.json"))) == 4


# what a folder says


def test_the_folder_of_a_run_says_everything(train: Any, small: Any) -> None:
    outcome = train("trainer.log_every=2", "callbacks.checkpoint.monitor=val/accuracy")
    folder, result = outcome.folder, outcome.result
    assert {path.name for path in folder.iterdir()} - {DIFF} == {
        "MODEL_CARD.md", "checkpoints", "config.yaml", "confusion_matrix.csv", "metrics.csv", "model.json",
        "overrides.yaml", "packages.txt", "packed.safetensors", "predictions.safetensors",
        "provenance.json", "result.json", "train.log",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["status"] == "finished"
    assert (result["name"], result["id"], result["seed"]) == ("first_steps", folder.name, 0)
    assert (result["quantizer"], result["source"]) == ("ternary_mean", source_fingerprint())
    assert (result["steps"], result["weights"]) == (8, "best validation")
    assert result["seconds"] > 0
    assert result["step_ms"] > 0
    metrics = ["loss", "accuracy"]
    names = {f"{part}/{name}" for part in ("val", "test", "test_packed") for name in metrics}
    names |= {f"size/{part}_{what}" for part in ("body", "total") for what in ("bytes", "weights")}
    names |= {f"cost/{kind}_{what}" for kind in ("fp32", "int8") for what in ("add", "mul")}
    names |= {"size/weight_bits", "size/activation_bits"}
    names |= {"cost/body_macs", "cost/total_macs", "memory/saved_bytes"}
    assert set(result["metrics"]) == names
    assert result["metrics"]["size/total_bytes"] < (folder / "packed.safetensors").stat().st_size

    assert yaml.safe_load((folder / "overrides.yaml").read_text())[: len(small)] == list(small)
    confusion = torch.tensor(
        [
            [int(cell) for cell in line.split(",")]
            for line in (folder / "confusion_matrix.csv").read_text().split()
        ]
    )
    assert confusion.shape == (10, 10)
    shown = result["metrics"]["test/accuracy"]
    assert confusion.diagonal().sum() / confusion.sum() == pytest.approx(shown)
    kept = load_file(folder / "predictions.safetensors")
    pairs = torch.stack([kept["label"], kept["prediction"]], dim=1).tolist()
    assert [[pairs.count([row, column]) for column in range(10)] for row in range(10)] == confusion.tolist()
    assert kept["label"].dtype == torch.uint8

    (attempt,) = json.loads((folder / "provenance.json").read_text())["attempts"]
    assert attempt["source"] == source_fingerprint()
    assert attempt["versions"]["torch"] == metadata.version("torch")
    assert attempt["python"] == sys.version.split()[0]
    assert attempt["seed"] == 0
    for key in (
        "started",
        "command",
        "host",
        "pid",
        "threads",
        "git",
        "platform",
        "processor",
        "cores",
        "gpus",
    ):
        assert key in attempt
    log = (folder / "train.log").read_text()
    assert "bitexp · first_steps · ternary_mean · seed 0" in log
    assert "from the packed file: exactly the same" in log


def test_the_config_of_a_run_makes_that_run(train: Any) -> None:
    outcome = train("callbacks.early_stopping={monitor: val/loss, mode: min, patience: 3}")
    config = yaml.safe_load((outcome.folder / "config.yaml").read_text())
    for same in (config, read_settings(config)):
        again = bitexp.run.road.run(same, [], Report(quiet=True))
        assert (again.trained, again.folder) == (False, outcome.folder)


def test_metrics_of_a_run(train: Any) -> None:
    outcome = train("trainer.log_every=2")
    measured = rows(outcome.folder)
    assert list(measured[0]) == ["step", "epoch", "metric", "value"]
    steps = [int(row["step"]) for row in measured]
    assert steps == sorted(steps)
    at: dict[str, list[int]] = {}
    for row in measured:
        assert float(row["value"]) == float(row["value"])
        at.setdefault(row["metric"], []).append(int(row["step"]))
    assert at["train/loss"] == at["time/step_ms"] == [2, 4, 6, 8]
    for name in (
        "val/loss",
        "val/accuracy",
        "quant/zero_fraction",
        "quant/flip_rate",
        "quant/scale/layers.0",
    ):
        assert at[name] == [4, 8]
    assert at["test/accuracy"] == at["test_packed/accuracy"] == at["size/body_bytes"] == [8]
    epochs = {row["epoch"] for row in measured if row["metric"] == "val/loss"}
    assert epochs == {"0", "1"}


def test_the_time_of_all_attempts_counts(train: Any, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bitexp.run.road, "measure", lambda *_: 1 / 0)
        assert train().result["kind"] == "crash"
    (path,) = outputs.glob("*/*/checkpoints/last.ckpt")
    checkpoint = load_checkpoint(path)
    checkpoint["callbacks"]["Checkpoints"]["seconds"] = 1000.0
    torch.save(checkpoint, path)
    assert train().result["seconds"] > 1000


# what a run says


def test_what_a_run_says(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train("callbacks.progress=lines", report=Report())
    said = capsys.readouterr().out
    for words in (
        "mlp, 1,210 parameters: body 1,024 in 1 layer",
        "ternary_mean: 1.58 bits per weight, activations int8, norm layer; body 212 B as pack5",
        "digits, 1,293 train / 144 val / 360 test images; batch 64 = 4 batches an epoch",
        "kernel     ",
        "2 epochs = 8 steps",
        "epoch 1/2  step 4/8  loss ",
        "epoch 2/2  step 8/8  loss ",
        "test/accuracy  ",
        "next           python -m bitexp -m logger=csv ",
        "'model.hidden=[16]' callbacks.progress=lines quantizer=full,ternary_mean seed=0,1,2",
    ):
        assert words in said
    assert max(len(line) for line in said.splitlines() if "  note  " not in line) < 300


def test_a_brief_report_has_one_line_for_what_was_done_before(
    train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = train(report=Report(brief=True))
    assert "next " not in capsys.readouterr().out
    train(report=Report(brief=True))
    (line,) = capsys.readouterr().out.splitlines()
    accuracy = outcome.result["metrics"]["test/accuracy"]
    assert line.startswith(
        f"first_steps · ternary_mean · seed 0: finished before, test/accuracy {accuracy:.4f}"
    )
    assert str(outcome.folder) in line


def test_warnings_of_the_libraries_go_to_the_log(train: Any) -> None:
    import warnings

    import bitexp.run.fit

    build = bitexp.run.fit.build_trainer

    def warn_and_build(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.getLogger("pytorch_lightning").warning("a library's words")
        return build(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitexp.run.fit, "build_trainer", warn_and_build)
        outcome = train()
    assert "a library's words" in (outcome.folder / "train.log").read_text()


def test_hooks_of_callbacks_that_do_nothing_are_called_for_no_batch() -> None:
    """Those that do something are, also where an object alone has them."""
    calls = []

    class Counts(pl.Callback):
        def on_after_backward(self, *_: Any) -> None:
            calls.append("class")

    one, other = Counts(), pl.Callback()
    other.on_train_batch_end = lambda *_: calls.append("object")  # type: ignore[method-assign, assignment]
    for callback in without_empty_hooks([one, other]):
        assert callback.on_before_backward is None
        assert callable(callback.on_train_epoch_end)
    assert one.on_train_batch_end is None
    one.on_after_backward()
    other.on_train_batch_end()  # type: ignore[call-arg]
    assert calls == ["class", "object"]


def test_outcome_is_stopped_until_it_says_otherwise(tmp_path: Path) -> None:
    assert bitexp.run.road.Outcome(tmp_path).status == "stopped"
    assert (
        dataclasses.replace(bitexp.run.road.Outcome(tmp_path), result={"status": "failed"}).status == "failed"
    )
