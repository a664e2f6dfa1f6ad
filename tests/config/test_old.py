"""Configs and descriptions of earlier versions say in today's words what they said then."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bitexp.config.old import MOVED, upgraded, upgraded_description, upgraded_quantizer
from bitexp.config.schema import read_settings
from bitexp.deploy.description import Description
from bitexp.deploy.generate import WEIGHTS
from bitexp.deploy.load import load_run
from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, Quantizer
from tests.support.configs import compose_config
from tests.support.quantizers import make_quantizer

RUN = Path(__file__).parents[1] / "files" / "format1" / "run"

ARGUMENTS: dict[str, Any] = {
    "norm": "layer",
    "activations": "int8",
    "act_qmax": 127,
    "granularity": "tensor",
    "group_size": None,
    "bias": "plain",
}
SELECTION: dict[str, Any] = {
    "include": ["*"],
    "exclude": ["head"],
    "lambda_schedule": {"name": "constant", "start": 0.0, "end": 0.0, "reset_optimizer": False},
}
PRESETS: dict[str, dict[str, Any]] = {
    "ternary_mean": {"name": "ternary_mean", **ARGUMENTS},
    "ternary_median": {"name": "ternary_median", **ARGUMENTS},
    "binary": {"name": "binary", **ARGUMENTS},
    "b158": {"name": "ternary_mean", **ARGUMENTS, "norm": "none"},
    "reloaded": {"name": "ternary_median", **ARGUMENTS, "act_qmax": 128, "bias": "scaled"},
    "full": {"name": "full"},
    "full_norm": {"name": "full_norm", "norm": "layer"},
}
"""What the presets of 2026-11 composed to, but for the selection of layers."""


def old_config(preset: str) -> dict[str, Any]:
    """A whole config of 2026-11."""
    selection = dict(SELECTION)
    if preset in ("full", "full_norm"):
        del selection["lambda_schedule"]
    return {**compose_config(), "quantizer": {**PRESETS[preset], **selection}}


@pytest.mark.parametrize("preset", PRESETS)
def test_old_presets_are_what_the_preset_says_today(preset: str) -> None:
    today = QUANTIZERS[preset].to_json() | {"name": PRESETS[preset]["name"]}
    arguments = {key: value for key, value in PRESETS[preset].items() if key != "name"}
    section = upgraded_quantizer(PRESETS[preset]["name"], arguments)
    assert section == today
    assert Quantizer.of(section).options == QUANTIZERS[preset].options


@pytest.mark.parametrize("preset", PRESETS)
def test_old_configs_are_valid_settings_of_today(preset: str) -> None:
    before = old_config(preset)
    untouched = copy.deepcopy(before)
    config = upgraded(before)
    assert before == untouched
    settings = read_settings(config)
    assert Quantizer.of(settings.quantizer.config).options == QUANTIZERS[preset].options
    assert settings.quantizer.include == ["*"]
    assert settings.quantizer.exclude == ["head"]
    assert {key: value for key, value in config.items() if key != "quantizer"} == {
        key: value for key, value in before.items() if key != "quantizer"
    }
    assert upgraded(config) == config


@pytest.mark.parametrize(
    ("changes", "today"),
    [
        ({"granularity": "channel"}, {"weights": {"granularity": "channel"}}),
        (
            {"granularity": "group", "group_size": 64},
            {"weights": {"granularity": "group", "group_size": 64}},
        ),
        ({"act_qmax": 128}, {"activations": {"qmax": 128}}),
        ({"activations": "none"}, {"activations": "none"}),
        ({"activations": "none", "act_qmax": 128}, {"activations": "none"}),
        ({"bias": "scaled"}, {"bias": "scaled"}),
        ({"norm": "rms"}, {"norm": "rms"}),
    ],
)
@pytest.mark.parametrize("name", ["ternary_mean", "ternary_median", "binary"])
def test_every_old_argument_has_its_place(name: str, changes: dict[str, Any], today: dict[str, Any]) -> None:
    assert upgraded_quantizer(name, ARGUMENTS | changes) == make_quantizer(name, **today).to_json()


@pytest.mark.parametrize("config", [{}, {"quantizer": None}, {"quantizer": {}}, {"seed": 3}])
def test_what_has_no_quantizer_is_left_as_it_is(config: dict[str, Any]) -> None:
    assert upgraded(config) == config


@pytest.mark.parametrize("preset", QUANTIZERS)
def test_configs_of_today_are_left_as_they_are(preset: str) -> None:
    config = compose_config(f"quantizer={preset}")
    assert upgraded(config) == config


def test_moved_keys_lead_to_keys_that_are_there() -> None:
    config = compose_config("quantizer=ternary_mean")
    for old, new in MOVED.items():
        assert old.rpartition(".")[2] not in config["quantizer"]
        node: Any = config
        for part in new.split("."):
            node = node[part]


def test_descriptions_of_format_1_name_the_quantizer_of_today() -> None:
    described = json.loads((RUN / "model.json").read_text())
    fields = upgraded_description(described)
    assert Quantizer.of(fields["quantizer"]).options == QUANTIZERS["reloaded"].options
    assert "quantizer_arguments" not in fields
    assert upgraded_description(fields) == fields
    kept = ("model", "model_arguments", "include", "exclude", "preprocessing")
    assert {key: fields[key] for key in kept} == {key: described[key] for key in kept}
    assert vars(Description.of(described)) == fields


def test_a_run_of_format_1_is_read_as_it_was_trained() -> None:
    config = upgraded(yaml.safe_load((RUN / "config.yaml").read_text()))
    assert Quantizer.of(config["quantizer"]).options == QUANTIZERS["reloaded"].options
    answers = []
    for weights in WEIGHTS:
        if weights == "best" and not (RUN / "checkpoints" / "best.ckpt").exists():
            continue
        model, _ = load_run(RUN, weights, KERNELS.get("reference"))
        with torch.no_grad():
            answers.append(model(torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))))
    assert len(answers) >= 2
    assert all(torch.equal(answer, answers[0]) for answer in answers)
