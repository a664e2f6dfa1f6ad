"""Runs without steps: what they start from is quantized, calibrated, tested and packed as any other."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import bitexp.run.post_training
from bitexp.common.errors import Stopped, UserError
from bitexp.config.choices import read_choice
from bitexp.config.schema import read_settings
from bitexp.config.sections import Named
from bitexp.deploy import load_run
from bitexp.quant import QUANTIZERS, quantize, quantized_layers
from bitexp.quant.calibration import CALIBRATIONS
from bitexp.run.build import completed_calibration
from bitexp.track.folder import identity
from tests.support.configs import SMALL, compose_config
from tests.support.processes import Command
from tests.support.training import Train

PTQ = ("+recipe=ptq", "quantizer=int")
ROUNDED = ("calibrate=adaround", "calibrate.iterations=5", "calibrate.samples=100")
IMAGES = ("data=digits", "model=cnn", "model.widths=[4,8]", "model.pool=[2,2]")


@pytest.fixture
def source(train: Train) -> Path:
    """A finished run in full precision."""
    return train("quantizer=full").folder


def codes(folder: Path, weights: str = "packed") -> list[torch.Tensor]:
    """What the layers of a run multiply by."""
    model, _ = load_run(folder, weights, "reference")
    if weights == "packed":
        return [model.get_submodule("layers.0")._codes()]  # type: ignore[operator]
    return [layer.quantized().codes for layer in quantized_layers(model).values()]


def metrics(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open() as file:
        return [row["metric"] for row in csv.DictReader(file)]


def test_rounding_to_nearest_is_what_the_quantizer_does_to_the_weights(source: Path, train: Train) -> None:
    """The weights of the source, by torch's own rounding."""
    outcome = train(*PTQ, f"start.from={source}", "quantizer.weights.bits=4")
    weight = load_run(source, "last")[0].get_parameter("layers.0.weight").detach()
    scale = weight.abs().amax(1) / 7
    (found,) = codes(outcome.folder)
    rounded = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(len(weight), dtype=torch.int32), 0, -7, 7
    )
    torch.testing.assert_close(found * scale[:, None], rounded)
    result = outcome.result
    assert (result["status"], result["steps"], result["step_ms"]) == ("finished", 0, None)
    assert result["weights"] == "as they were loaded"
    assert result["lr_decay_sum"] == 0
    assert result["metrics"]["test/accuracy"] == result["metrics"]["test_packed/accuracy"]
    assert "val/accuracy" in result["metrics"]


@pytest.mark.parametrize("preset", ["ternary_mean", "ternary_median", "binary"])
def test_presets_are_rounded_as_they_round(preset: str, source: Path, train: Train) -> None:
    outcome = train("+recipe=ptq", f"start.from={source}", f"quantizer={preset}")
    model = load_run(source, "last")[0]
    quantize(model, QUANTIZERS[preset], exclude=["head"])
    assert torch.equal(codes(outcome.folder)[0], quantized_layers(model)["layers.0"].quantized().codes)


def test_the_full_run_comes_first_and_is_found_the_next_time(train: Train, outputs: Path) -> None:
    for bits in (2, 8):
        train(*PTQ, f"quantizer.weights.bits={bits}")
    kinds = [yaml.safe_load(file.read_text()) for file in outputs.glob("*/*/config.yaml")]
    found = sorted((c["quantizer"]["name"], str(c["trainer"]["max_steps"])) for c in kinds)
    assert found == [("full", "None"), ("int", "0"), ("int", "0")]


@pytest.mark.parametrize("words", [ROUNDED, ("calibrate=adaquant", "calibrate.iterations=5")])
def test_calibrated_weights_are_tested_packed_and_kept(
    words: tuple[str, ...], source: Path, train: Train
) -> None:
    nearest = train(*PTQ, f"start.from={source}", "quantizer.weights.bits=2")
    outcome = train(*PTQ, f"start.from={source}", "quantizer.weights.bits=2", *words)
    assert outcome.folder != nearest.folder
    result = outcome.result
    assert result["metrics"]["test/loss"] == result["metrics"]["test_packed/loss"]
    assert result["weights"].startswith("calibrated by ada")
    assert result["metrics"]["val/loss"] < nearest.result["metrics"]["val/loss"]
    assert not torch.equal(codes(outcome.folder)[0], codes(nearest.folder)[0])
    assert torch.equal(codes(outcome.folder)[0], codes(outcome.folder, "last")[0])
    assert {"calibrate/error/layers.0", "calibrate/nearest_error/layers.0"} <= set(metrics(outcome.folder))
    again = train(*PTQ, f"start.from={source}", "quantizer.weights.bits=2", *words)
    assert not again.trained


def test_batch_norms_are_estimated_anew(train: Train) -> None:
    words = (*SMALL[:-1], *IMAGES, "+recipe=ptq", "quantizer=binary")
    plain, calibrated = (train(*words, f"calibrate={name}", base=()) for name in ("none", "bn"))
    states = [load_run(outcome.folder, "last")[0].state_dict() for outcome in (plain, calibrated)]
    differ = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert differ
    assert all("running_" in name or "num_batches" in name for name in differ)
    assert "calibrated by bn" in (calibrated.folder / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_training_goes_on_from_calibrated_weights(source: Path, train: Train) -> None:
    calibrated = train(*PTQ, f"start.from={source}", *ROUNDED)
    outcome = train(
        "quantizer=int", "quantizer.norm=none", f"start.from={calibrated.folder}", "optimizer.lr=0.01"
    )
    assert not torch.equal(codes(calibrated.folder)[0], codes(outcome.folder)[0])
    assert "held" not in " ".join(load_run(outcome.folder, "last")[0].state_dict())


def test_a_lost_file_is_made_again_without_calibrating(
    source: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*PTQ, f"start.from={source}", *ROUNDED)
    first = train(*words)
    (first.folder / "packed.safetensors").unlink()
    monkeypatch.setattr(bitexp.run.post_training.PostTraining, "inputs", lambda *_: pytest.fail("calibrates"))
    again = train(*words)
    assert again.trained
    same = ("metrics", "files")
    assert {key: again.result[key] for key in same} == {key: first.result[key] for key in same}


@pytest.mark.slow
def test_a_killed_calibration_starts_again(source: Path, train: Train, command: Command) -> None:
    words = (*PTQ, f"start.from={source}", *ROUNDED)

    def die_after_a_layer() -> None:
        def told(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        bitexp.run.post_training.PostTraining.calibrated = told  # type: ignore[method-assign]

    undisturbed = train(*words)
    shutil.rmtree(undisturbed.folder)
    ended = command(*SMALL, *words, first=die_after_a_layer)
    assert ended.code == -signal.SIGKILL, ended.err
    assert train(*words).result["metrics"] == undisturbed.result["metrics"]


def test_a_signal_ends_it_after_a_layer(source: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*PTQ, f"start.from={source}", *ROUNDED)

    def stop(self: Any, *_: Any) -> None:
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(bitexp.run.post_training.PostTraining, "calibrated", stop)
        assert train(*words).status == "stopped"
    assert train(*words).status == "finished"


REFUSED = {
    ("calibrate=adaround",): "needs trainer.max_steps=0, as [+]recipe=ptq has it",
    (*PTQ, "calibrate=bn"): "has none; use",
    ("+recipe=ptq", "quantizer=sherry", "calibrate=adaround"): "weights=sherry has a rule",
    ("+recipe=ptq", "quantizer=full", "calibrate=adaround"): "no quantized layer to calibrate",
    (*PTQ, "calibrate=adaround", "calibrate.iterations=0"): "calibrate.iterations=0 must be at least 1",
    (*PTQ, "calibrate=adaround", "+calibrate.iteration=5"): "Did you mean 'calibrate.iterations'",
    (*PTQ, "+calibrate.samples=5"): "calibrate.samples does nothing with calibrate=none",
    (*PTQ, "quantizer.norm=layer"): "quantizer.norm=none, and quantizer.norm=layer makes another network",
    (*PTQ, "trainer.devices=2"): "trainer.max_steps=0 trains nothing",
    (*PTQ, "trainer.max_steps=-1"): "trainer.max_steps",
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_what_cannot_be_is_said_before_anything_is_trained(
    words: tuple[str, ...], sentence: str, train: Train, outputs: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(*words)
    assert not list(outputs.glob("*/*"))


def test_no_calibration_is_the_id_of_before_and_another_is_another() -> None:
    config = compose_config()
    before = {key: value for key, value in config.items() if key != "calibrate"}
    assert identity(config, "") == identity(before, "")
    assert identity(config | {"calibrate": {"name": "bn", "samples": 1024}}, "") != identity(before, "")


def test_options_that_are_left_out_are_said() -> None:
    """So that the id of a run does not depend on whether its defaults were."""
    whole = read_settings(compose_config("calibrate=adaround")).calibrate
    assert completed_calibration(Named(name="adaround")) == whole
    assert completed_calibration(Named(name="none")) == Named(name="none")


@pytest.mark.parametrize("name", CALIBRATIONS.names())
def test_the_yaml_says_all_options_as_the_class_has_them(name: str) -> None:
    assert read_choice("calibrate", name) == completed_calibration(Named(name=name)).model_dump()
