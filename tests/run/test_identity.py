"""Which configs of a quantizer are one run: words and sections, labels, rules, stages."""

from __future__ import annotations

import itertools

import pytest
import yaml

from bitexp.config.schema import Settings, read_settings
from bitexp.quant import QUANTIZERS
from bitexp.run.build import build_quantizer, completed
from bitexp.track.folder import RunFolder
from tests.support.configs import compose_config
from tests.support.training import Train


def settings_of(*overrides: str) -> Settings:
    """The settings of a run, all options said."""
    settings = read_settings(compose_config(*overrides))
    return completed(settings, build_quantizer(settings.quantizer))


def id_of(*overrides: str) -> str:
    return RunFolder.of(settings_of(*overrides), "data").id


SAME = [
    (["quantizer.name=mine"], []),
    (["quantizer.activations=int8"], ["quantizer.activations={name: int8, qmax: 127}"]),
    (["quantizer.activations=int8"], ["quantizer.activations={name: int8}"]),
    (["quantizer.activations=int8"], []),
    (["quantizer.activations=none"], ["quantizer.activations=null"]),
    (["quantizer.weights=binary", "quantizer.name=binary"], ["quantizer=binary"]),
    (["quantizer.weights=lsq"], ["quantizer=lsq"]),
    (["quantizer=lsq"], ["quantizer=lsq", "quantizer.weights.bits=4"]),
    (["quantizer=int"], ["quantizer=int", "quantizer.weights.range=absmax"]),
    (["quantizer.norm=none"], ["quantizer=b158"]),
    (["quantizer=bitnet"], ["quantizer=binary"]),
    (["quantizer.gradients=none", "quantizer.output_norm=none"], []),
    (
        ["quantizer=ternary_median", "quantizer.activations.qmax=128", "quantizer.bias=scaled"],
        ["quantizer=reloaded"],
    ),
    (
        ["quantizer.layers=[{match: head, weights: int, activations: int8}]"],
        [
            "quantizer.layers=[{match: [head], weights: {name: int, bits: 4}, "
            "activations: {name: int8, qmax: 127}}]",
        ],
    ),
    (
        ["quantizer.stages=[{until: 0.5, activations: int8}]"],
        ["quantizer.stages=[{until: 0.5, activations: {name: int8, qmax: 127}}]"],
    ),
]


def test_a_packing_is_a_word_as_before_unless_embeddings_are_packed_too() -> None:
    assert settings_of().model_dump(mode="json")["packing"] == "auto"
    assert id_of("packing=pack2") == id_of("packing.layout=pack2") != id_of()
    assert id_of("packing=auto") == id_of("packing={layout: auto, embeddings: float}") == id_of()
    packed = settings_of("packing.embeddings=int8")
    assert id_of("packing.embeddings=int8") != id_of()
    assert read_settings(packed.model_dump(mode="json")) == packed


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_two_spellings_of_one_quantizer_are_one_run(one: list[str], other: list[str]) -> None:
    assert id_of(*one) == id_of(*other)


OTHERS = [
    *([f"quantizer={name}"] for name in QUANTIZERS if name != "bitnet"),
    ["quantizer.gradients=int"],
    ["quantizer.gradients={name: int, bits: 4}"],
    ["quantizer.output_norm=rms"],
    ["quantizer.activations=int4", "quantizer.norm=none"],
    ["quantizer.activations.qmax=128"],
    ["quantizer.activations=none"],
    ["quantizer.weights.granularity=channel"],
    ["quantizer=int", "quantizer.weights.bits=3"],
    ["quantizer=int", "quantizer.weights.range=mse"],
    ["quantizer=codebook", "quantizer.weights.values=fp4"],
    ["quantizer=seq", "quantizer.weights.bits=1.58"],
    ["quantizer.transform=hadamard"],
    ["quantizer.sparsifier=top_k"],
    ["quantizer.estimator=clipped"],
    ["quantizer.layers=[{match: 'layers.*', weights: binary}, {match: layers.0, weights: int}]"],
    ["quantizer.layers=[{match: layers.0, weights: int}, {match: 'layers.*', weights: binary}]"],
    ["quantizer.layers=[{match: layers.0, weights: int, norm: rms}, {match: 'layers.*', weights: binary}]"],
    ["quantizer.layers=[{match: layers.0, activations: none}]"],
    ["quantizer.stages=[{until: 0.5, activations: none}]"],
    ["quantizer.stages=[{until: 0.6, activations: none}]"],
]


def test_quantizers_that_compute_something_else_are_other_runs() -> None:
    ids = {str(words): id_of(*words) for words in OTHERS}
    for one, other in itertools.combinations(ids, 2):
        assert ids[one] != ids[other], f"{one} and {other}"


def test_a_name_is_kept_though_it_is_not_part_of_the_identity() -> None:
    assert settings_of("quantizer.name=mine").quantizer.name == "mine"
    assert settings_of().quantizer.name == "ternary_mean"


@pytest.mark.parametrize("words", [*SAME[-2], *OTHERS], ids=str)
def test_a_stored_config_is_read_as_the_run_that_it_was(words: list[str]) -> None:
    settings = settings_of(*words)
    stored = yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json")))
    again = read_settings(stored)
    assert again == settings
    assert build_quantizer(again.quantizer) == build_quantizer(settings.quantizer)
    assert (
        RunFolder.of(completed(again, build_quantizer(again.quantizer)), "").id
        == RunFolder.of(settings, "").id
    )


def test_a_run_is_found_again_under_another_spelling(train: Train) -> None:
    first = train("quantizer.activations=int8", "quantizer.name=mine")
    again = train("quantizer.activations={name: int8, qmax: 127}")
    assert first.trained
    assert not again.trained
    assert again.folder == first.folder
    assert train("quantizer.activations.qmax=128").folder != first.folder
