"""What is chosen for a layer, and for which: words, sections, defaults, rules, stages, presets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from torch import nn

from bitexp.common.registry import UnknownName
from bitexp.common.signatures import keywords
from bitexp.quant import QUANTIZERS, Part, Quantizer, quantize
from bitexp.quant.layers import quantized_layers
from bitexp.quant.options import REGISTRIES, LayerOptions, complete
from bitexp.quant.quantizer import SELECTION
from tests.support.configs import CONF, compose_config
from tests.support.marks import others_slow
from tests.support.quantizers import MakeQuantizer

TERNARY: dict[str, Any] = {"weights": "ternary_mean", "activations": "int8"}


def of(**section: Any) -> Quantizer:
    """A ternary quantizer with int8 activations, changed."""
    return Quantizer.of({**TERNARY, **section})


@pytest.mark.parametrize(
    ("key", "name"), [(k, n) for k, registry in REGISTRIES.items() for n in registry.names()]
)
def test_a_bare_word_is_a_section_with_that_name_and_the_defaults_of_its_class(key: str, name: str) -> None:
    part = complete(key, name)
    assert part is not None
    assert part == complete(key, {"name": name}) == complete(key, Part(name)) == complete(key, part)
    assert part == complete(key, part.to_json())
    assert part.name == name


def test_none_and_null_are_no_part() -> None:
    for nothing in ("none", None, {"name": "none"}):
        assert Part.of(nothing) is None
        assert of(activations=nothing).options.activations is None
    with pytest.raises(ValueError, match=r"\{'bits': 4\} has no name"):
        of(weights={"bits": 4})


def test_options_that_are_left_out_are_those_of_the_class() -> None:
    options = of(weights={"name": "int", "bits": 3}).options
    assert options.weights == Part("int", {"bits": 3, "granularity": "channel", "group_size": None})
    assert options.activations == Part("int8", {"qmax": 127})
    assert options.estimator == Part("straight_through")
    assert of(weights={"name": "int", "bits": 3}) == of(weights=options.weights)


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ({"weights": "ternery_mean"}, UnknownName, r"unknown weight quantizer 'ternery_.*'ternary_mean'"),
        ({"activations": "int9"}, UnknownName, r"unknown activation quantizer 'int9'.*Did you mean"),
        ({"transform": "hadamad"}, UnknownName, r"unknown transform 'hadamad'.*'hadamard'"),
        ({"sparsifier": "topk"}, UnknownName, r"unknown sparsifier 'topk'.*'top_k'"),
        ({"estimator": "cliped"}, UnknownName, r"unknown estimator 'cliped'.*'clipped'"),
        ({"wieghts": "int"}, ValueError, r"unknown key 'wieghts'.*'weights'.*Known: weights, activations"),
        (
            {"weights": {"name": "int", "bit": 4}},
            ValueError,
            r"weights=int has no option 'bit'.*'bits'.*Known: bits, granularity, group_size",
        ),
        ({"activations": {"name": "int4", "qmax": 7}}, ValueError, "int4 has no option 'qmax'. It has none"),
        ({"norm": "batch"}, ValueError, "norm=batch should be one of none, rms, layer"),
        ({"bias": "scale"}, ValueError, "bias=scale should be one of plain, scaled"),
        ({"weights": {"name": "int", "bits": 9}}, ValueError, "bits=9 must be from 2 to 8"),
        ({"weights": {"name": "lsq", "bits": 1}}, ValueError, "bits=1 must be from 2 to 8"),
        ({"weights": {"name": "lsq", "init": "zero"}}, ValueError, "init=zero should be"),
        ({"activations": {"name": "int8", "qmax": 129}}, ValueError, "qmax=129 should be 127 or 128"),
        ({"transform": {"name": "hadamard", "block": 12}}, ValueError, "block=12 must be a power of two"),
        ({"transform": {"name": "hadamard", "applies_to": "weights"}}, ValueError, "applies_to=weights"),
        ({"sparsifier": {"name": "top_k", "keep": 0.0}}, ValueError, r"keep=0\.0 must be above 0"),
        ({"estimator": {"name": "clipped", "at": 0.0}}, ValueError, r"at=0\.0 must be above 0"),
        ({"weights": "lsq", "estimator": "clipped"}, ValueError, "weights=lsq has a gradient of its own"),
        ({"weights": "none", "bias": "scaled", "activations": "none"}, ValueError, "bias=scaled needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_words(
    section: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        of(**section)


@pytest.mark.parametrize(
    ("key", "word"),
    [("activations", "int8"), ("transform", "hadamard"), ("sparsifier", "top_k"), ("estimator", "clipped")],
)
def test_without_quantized_weights_other_parts_are_refused(key: str, word: str) -> None:
    nothing = {"estimator": "straight_through"}.get(key, "none")
    with pytest.raises(
        ValueError, match=f"{key}={word} would do nothing with weights=none: .*{key}={nothing}"
    ):
        Quantizer.of({"weights": "none", key: word})
    with pytest.raises(ValueError, match="activations=int8 would do nothing"):
        of(layers=[{"match": "head", "weights": "none"}])
    of(layers=[{"match": "head", "weights": "none", "activations": "none"}])


def test_the_last_rule_that_matches_wins_and_replaces_a_part_whole() -> None:
    plain, three, five = (
        Part("ternary_mean", {"granularity": "tensor", "group_size": None}),
        Part("int", {"bits": 3, "granularity": "tensor", "group_size": None}),
        Part("int", {"bits": 5, "granularity": "channel", "group_size": None}),
    )
    quantizer = of(
        norm="rms",
        layers=[
            {"match": "blocks.0", "norm": "none", "weights": three.to_json()},
            {"match": ["*.down", "head"], "activations": "int4"},
            {"match": "blocks.*.down", "weights": {"name": "int", "bits": 5}},
        ],
    )
    found = {
        name: (options.weights, options.activations and options.activations.name, options.norm)
        for name in ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head", "tail")
        for options in [quantizer.for_layer(name)]
    }
    assert found == {
        "blocks.0.up": (three, "int8", "none"),
        "blocks.0.down": (five, "int4", "none"),
        "blocks.1.up": (plain, "int8", "rms"),
        "blocks.1.down": (five, "int4", "rms"),
        "head": (plain, "int4", "rms"),
        "tail": (plain, "int8", "rms"),
    }


def test_a_rule_needs_a_pattern_that_a_layer_has() -> None:
    with pytest.raises(ValueError, match="a rule of layers needs a match"):
        of(layers=[{"weights": "binary"}])
    with pytest.raises(ValueError, match="unknown key 'bits'"):
        of(layers=[{"match": "0", "bits": 4}])
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"no layer of the model is called 'o'.*quantizer\.layers"):
        quantize(model, of(layers=[{"match": "o", "weights": "binary"}]))


def test_rules_choose_what_the_layers_of_a_model_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    rules = [
        {"match": "1", "weights": "binary", "activations": "int4"},
        {"match": "2", "weights": "none", "activations": "none"},
    ]
    kept = model[2]
    assert quantize(model, of(layers=rules)).body == ["0", "1", "2"]
    assert {name: layer.spec.weights.name for name, layer in quantized_layers(model).items()} == {
        "0": "ternary_mean",
        "1": "binary",
    }
    assert model[2] is kept


def test_stages_are_the_options_with_changes_until_a_share_of_the_training() -> None:
    quantizer = of(
        activations="int4",
        sparsifier="top_k",
        stages=[
            {"until": 0.5, "activations": "none", "sparsifier": "none"},
            {"until": 0.9, "activations": "int8"},
        ],
    )
    earlier = quantizer.staged(quantizer.options)
    assert [until for until, _ in earlier] == [0.5, 0.9]
    assert [(o.activations and o.activations.name, o.sparsifier is None) for _, o in earlier] == [
        (None, True),
        ("int8", False),
    ]


SPARE = Quantizer.of(
    {
        "name": "spare",
        "layers": [{"match": "0", "weights": "int", "activations": "int8"}],
        "stages": [{"until": 0.5, "activations": "none", "sparsifier": "top_k"}],
    }
)
"""Only some layers are quantized at all."""
RICH = of(
    name="rich",
    norm="layer",
    activations="int4",
    transform="hadamard",
    layers=[
        {"match": "0", "weights": {"name": "lsq", "bits": 2}, "transform": "none"},
        {"match": ["1", "2"], "weights": "none", "activations": "none", "transform": "none"},
    ],
    stages=[{"until": 0.5, "activations": {"name": "int8", "qmax": 128}}],
)


@pytest.mark.parametrize("quantizer", [*QUANTIZERS.values(), RICH, SPARE], ids=lambda q: q.name)
def test_a_quantizer_survives_json(quantizer: Quantizer) -> None:
    stored = json.loads(json.dumps(quantizer.to_json()))
    again = Quantizer.of(stored)
    assert json.loads(json.dumps(again.to_json())) == stored
    assert again.options == quantizer.options
    for name in "0123":
        options = quantizer.for_layer(name)
        assert again.for_layer(name) == options
        assert again.staged(options) == quantizer.staged(options)


FILES = sorted((CONF / "quantizer").glob("*.yaml"))


def test_presets_are_the_files() -> None:
    assert list(QUANTIZERS) == [path.stem for path in FILES]
    assert len(QUANTIZERS) == len(FILES)
    assert "ternary_mean" in QUANTIZERS
    assert "ternary" not in QUANTIZERS
    with pytest.raises(
        UnknownName, match=r"unknown quantizer 'ternary_maen'\. Did you mean 'ternary_mean'\?"
    ):
        QUANTIZERS["ternary_maen"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_preset_is_called_like_its_file_and_says_its_options_in_full(path: Any) -> None:
    written = yaml.safe_load(path.read_text())
    assert written["name"] == path.stem == QUANTIZERS[path.stem].name
    assert {"weights", "activations"} <= set(written)
    for key in REGISTRIES:
        part = complete(key, written.get(key))
        if part is None:
            continue
        said = {"name": written[key]} if isinstance(written[key], str) else written[key]
        target = REGISTRIES[key].get(part.name)
        later = {option: keywords(target)[option].default for option in getattr(target, "later", ())}
        assert said == {**later, **part.to_json()}, f"{path.stem}: {key} leaves an option out"
        if key == "weights" and part.name == path.stem:  # others are there to say something else
            assert part == complete(key, part.name)


@pytest.mark.parametrize("name", others_slow(QUANTIZERS, list(QUANTIZERS)[::3]))
def test_presets_composed_by_hydra_are_those_that_are_read_without(
    make_quantizer: MakeQuantizer, name: str
) -> None:
    assert Quantizer.of(compose_config(f"quantizer={name}")["quantizer"]) == QUANTIZERS[name]
    assert make_quantizer(name) == QUANTIZERS[name]


def test_what_says_which_layers_is_no_part_of_the_value() -> None:
    assert set(SELECTION) == {"include", "exclude", "lambda_schedule"}
    assert of(include=["a"], exclude=["b"]) == of()
    assert LayerOptions().to_json()["weights"] == "none"
