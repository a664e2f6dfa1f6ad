"""One run: asked again it is found, it says what it was, and what is deployed is what was trained."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import bitexp.run.road
from bitexp.common.console import Report
from bitexp.config.schema import read_settings
from bitexp.deploy.packed_file import load_packed
from bitexp.kernels import choose_kernel
from bitexp.quant import QUANTIZERS
from bitexp.track.checkpoint_files import BEST, LAST, load_checkpoint
from bitexp.track.folder import UNIMPORTANT, identity
from bitexp.track.provenance import source_fingerprint

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "quantizer").glob("*.yaml"))


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
    monkeypatch.setattr(bitexp.run.road, "attempt_run", lambda *_: pytest.fail("trained again"))
    again = train(report=Report())
    assert (again.trained, again.folder, again.result) == (False, first.folder, first.result)
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().out
    assert "finished before; nothing was trained" in said
    assert "made with other source" not in said


def test_what_cannot_change_a_result_finds_the_same_run(train: Any) -> None:
    first = train()
    again = train("trainer.log_every=7", "data.workers=1", "callbacks.progress=lines", "logger.wandb=null")
    assert (again.trained, again.folder) == (False, first.folder)


def test_a_run_of_other_source_is_told(
    train: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    monkeypatch.setattr(bitexp.run.road, "source_fingerprint", lambda: "other")
    assert not train(report=Report()).trained
    assert "made with other source of bitexp; rerun=true makes it new" in capsys.readouterr().out


def test_a_rerun_keeps_the_old_folder(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = train()
    second = train("rerun=true", report=Report())
    third = train("rerun=true")
    assert first.folder == second.folder == third.folder
    assert second.trained
    kept = list(first.folder.parent.glob(".replaced/*/result.json"))
    assert len(kept) == 2
    assert "rerun=true: the earlier run is kept in" in capsys.readouterr().out
    assert not train().trained


def test_a_grid_runs_only_its_missing_cells(command: Any, small: Any, outputs: Path) -> None:
    ended = command("-m", *small, "quantizer=full,binary", "seed=0")
    assert ended.code == 0, ended.err
    assert "2 jobs: 2 trained, 0 finished before" in ended.out
    ended = command("-m", *small, "quantizer=full,binary", "seed=0,1")
    assert ended.code == 0
    assert "4 jobs: 2 trained, 2 finished before, 0 not finished" in ended.out
    assert len(list(outputs.glob("*/*/result.json"))) == 4


# identity


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The config with another value for one key."""
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = {"was": node[last]}
    return config


def test_every_key_but_the_unimportant_is_part_of_the_identity(compose_config: Any) -> None:
    config = read_settings(compose_config()).model_dump(mode="json")
    reference = identity(config, "data")
    keys = set(leaves(config))
    assert len(keys) > 60
    unimportant = {key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in UNIMPORTANT)}
    assert {key for key in keys if identity(changed(config, key), "data") == reference} == unimportant
    assert identity(config, "other data") != reference


def test_unimportant_keys_exist(compose_config: Any) -> None:
    config = compose_config()
    sections = {name.rpartition(".")[0] for name in leaves(config)}
    assert all(name in set(leaves(config)) | sections | set(config) for name in UNIMPORTANT)


def test_the_identity_does_not_depend_on_the_order_of_keys(compose_config: Any) -> None:
    config = read_settings(compose_config()).model_dump(mode="json")
    assert identity(dict(reversed(config.items())), "data") == identity(config, "data")


# what a folder says


def test_the_folder_of_a_run_says_everything(train: Any, small: Any) -> None:
    outcome = train("trainer.log_every=2", "callbacks.checkpoint.monitor=val/accuracy")
    folder, result = outcome.folder, outcome.result
    assert {path.name for path in folder.iterdir()} == {
        "MODEL_CARD.md", "checkpoints", "config.yaml", "confusion_matrix.csv", "metrics.csv", "model.json",
        "overrides.yaml", "packed.safetensors", "provenance.json", "result.json", "train.log",
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
    assert "from the packed file: the same, exactly" in log


def test_the_config_of_a_run_makes_that_run(train: Any) -> None:
    outcome = train("callbacks.early_stopping={monitor: val/loss, mode: min, patience: 3}")
    config = yaml.safe_load((outcome.folder / "config.yaml").read_text())
    again = bitexp.run.road.run(config, [], Report(quiet=True))
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


# what is deployed is what was trained


def assert_the_packed_file_is_what_was_trained(outcome: Any) -> None:
    assert outcome.result["reason"] is None
    metrics = outcome.result["metrics"]
    tested = {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert len(tested) == 2
    assert tested == {n.replace("_packed", ""): v for n, v in metrics.items() if n.startswith("test_packed/")}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_packed_file_tests_exactly_like_the_model(preset: str, train: Any) -> None:
    assert_the_packed_file_is_what_was_trained(train(f"quantizer={preset}"))


def test_the_presets_hold_every_quantizer() -> None:
    assert set(QUANTIZERS.names()) <= set(PRESETS)


VARIANTS = {
    "vit": ["model=vit", "model.depth=1"],
    "cnn": ["model=cnn"],
    "cnn binary": ["model=cnn", "quantizer=binary"],
    "torchvision": ["model=mobilenet_v3_small", "trainer.epochs=1", "trainer.train_batches=1"],
    "bf16": ["trainer.precision=bf16-true"],
    "bf16 mixed": ["trainer.precision=bf16-mixed", "model=vit", "model.depth=1"],
    "averaged": ["callbacks.ema_decay=0.5"],
    "channel": ["quantizer.granularity=channel", "packing=pack2"],
    "groups": ["quantizer.granularity=group", "quantizer.group_size=16", "quantizer.norm=rms"],
    "floats": ["quantizer.activations=none", "packing=pack8"],
    "phased in": ["quantizer.lambda_schedule={name: sigmoid, start: 0.2, end: 1.0}"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_so_it_is_for_other_models_and_settings(variant: str, train: Any, tiny: Any) -> None:
    assert_the_packed_file_is_what_was_trained(train(*VARIANTS[variant], base=tiny))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # torch.compile
def test_so_it_is_for_a_compiled_model(train: Any, tiny: Any) -> None:
    words = ["model=vit", "model.depth=1", "trainer.compile=true"]
    assert_the_packed_file_is_what_was_trained(train(*words, base=tiny))


# which weights count


def test_the_best_validation_is_what_is_tested(train: Any) -> None:
    words = ["trainer.epochs=4", "callbacks.checkpoint.mode=max"]  # so that the last is not the best
    outcome = train(*words, "callbacks.checkpoint.monitor=val/loss")
    losses = {int(r["step"]): float(r["value"]) for r in rows(outcome.folder) if r["metric"] == "val/loss"}
    best = max(losses, key=lambda step: losses[step])
    assert best < max(losses)
    assert load_checkpoint(outcome.folder / "checkpoints" / BEST)["global_step"] == best
    assert outcome.result["weights"] == "best validation"
    assert outcome.result["metrics"]["val/loss"] == losses[best]
    last = train(*words)
    assert last.result["weights"] == "last step"
    assert last.result["metrics"]["val/loss"] == losses[max(losses)]
    assert last.result["metrics"]["test/loss"] != outcome.result["metrics"]["test/loss"]


def test_the_better_end_of_a_metric_need_not_be_named(train: Any) -> None:
    named, words = ["callbacks.checkpoint.mode=min"], ["trainer.epochs=3", "optimizer.lr=0.3"]
    results = [
        train(*words, *mode, "callbacks.checkpoint.monitor=val/loss").result["metrics"]
        for mode in ([], named)
    ]
    assert results[0] == results[1]


def test_gradients_are_clipped_in_mixed_precision_too(train: Any) -> None:
    """By a fused optimizer, for which Lightning refuses to."""
    outcome = train("trainer.precision=bf16-mixed", "trainer.gradient_clip=0.001")
    assert outcome.result["reason"] is None
    assert outcome.result["metrics"] != train("trainer.precision=bf16-mixed").result["metrics"]


def test_early_stopping_ends_the_run(train: Any) -> None:
    outcome = train(
        "trainer.epochs=50", "callbacks.early_stopping={monitor: val/loss, mode: max, patience: 2}"
    )
    assert outcome.status == "finished"
    losses = [float(row["value"]) for row in rows(outcome.folder) if row["metric"] == "val/loss"]
    assert 3 <= len(losses) < 50
    assert max(losses[-2:]) <= max(losses[:-2])


def test_averaged_weights_are_what_is_packed(train: Any) -> None:
    outcome = train("callbacks.ema_decay=0.9", "quantizer=full")
    checkpoint = load_checkpoint(outcome.folder / "checkpoints" / LAST)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    kernel, _, _ = choose_kernel("reference", "cpu")
    packed = load_packed(outcome.folder / "packed.safetensors", kernel)[0].state_dict()
    assert torch.equal(packed["head.weight"], averaged["model.head.weight"])
    assert not torch.equal(averaged["model.head.weight"], current["model.head.weight"])


def test_a_run_ends_after_max_steps_and_validates(train: Any) -> None:
    outcome = train("trainer.max_steps=6")
    assert outcome.result["steps"] == 6
    assert [row["step"] for row in rows(outcome.folder) if row["metric"] == "val/loss"] == ["4", "6"]


def test_without_validation_data_a_run_ends_all_the_same(train: Any) -> None:
    outcome = train("data.val_size=0")
    assert outcome.status == "finished"
    assert not [name for name in outcome.result["metrics"] if name.startswith("val/")]


# what a run says


def test_what_a_run_says(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train("callbacks.progress=lines", report=Report())
    said = capsys.readouterr().out
    for words in (
        "mlp, 1,210 parameters: body 1,024 in 1 layer",
        "ternary_mean: 1.58 bits per weight, activations int8, norm layer; body 208 B as pack5",
        "digits, 1,293 train / 144 val / 360 test images; batch 64 = 4 batches an epoch",
        "kernel     ",
        "2 epochs = 8 steps",
        "epoch 1/2  step 4/8  loss ",
        "epoch 2/2  step 8/8  loss ",
        "test/accuracy  ",
        "next           python -m bitexp -m quantizer=full,ternary_mean seed=0,1,2",
    ):
        assert words in said
    assert max(map(len, said.splitlines())) < 200


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


def test_outcome_is_stopped_until_it_says_otherwise(tmp_path: Path) -> None:
    assert bitexp.run.road.Outcome(tmp_path).status == "stopped"
    assert (
        dataclasses.replace(bitexp.run.road.Outcome(tmp_path), result={"status": "failed"}).status == "failed"
    )
