"""Options in time: which parts hold at which share of the training, and what is frozen at the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.deploy.frozen import freeze
from bitexp.quant import Quantizer, quantize, quantized_layers, set_progress
from bitexp.quant.options import LayerOptions

CONFIG = {
    "name": "staged",
    "weights": "ternary_mean",
    "activations": "int4",
    "transform": "hadamard",
    "norm": "rms",
    "stages": [
        {"until": 0.5, "activations": "int8", "transform": "none"},
        {"until": 0.75, "activations": "int8"},
    ],
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    quantize(made, CONFIG, exclude=["2"])
    return made


@pytest.mark.parametrize(
    ("share", "activations", "transform"),
    [
        (0.0, "int8", None), (0.49, "int8", None), (0.5, "int8", "hadamard"), (0.74, "int8", "hadamard"),
        (0.75, "int4", "hadamard"), (1.0, "int4", "hadamard"),
    ],
)  # fmt: skip
def test_a_stage_holds_until_its_share(share: float, activations: str, transform: str | None) -> None:
    staged = model()
    set_progress(staged, share)
    spec = quantized_layers(staged)["0"].spec
    assert spec.activations is not None
    assert spec.activations.part.name == activations
    assert (spec.transform.name if spec.transform else None) == transform


def test_a_new_model_is_what_it_will_be_at_the_end() -> None:
    assert quantized_layers(model())["0"].spec.activations.part.name == "int4"  # type: ignore[union-attr]


def test_each_stage_computes_what_a_layer_with_its_options_computes() -> None:
    staged, x = model(), torch.randn(5, 16)
    for share, changes in (
        (0.1, {"activations": "int8"}),
        (0.9, {"activations": "int4", "transform": "hadamard"}),
    ):
        set_progress(staged, share)
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        quantize(plain, {"weights": "ternary_mean", "norm": "rms", **changes}, exclude=["2"])
        for one, other in ((staged.train(), plain.train()), (staged.eval(), plain.eval())):
            assert torch.equal(one(x), other(x))


def test_weights_and_what_they_learn_are_the_same_in_every_stage() -> None:
    made = nn.Sequential(nn.Linear(16, 16))
    quantize(made, {**CONFIG, "weights": "lsq"})
    assert [name for name, _ in made.named_parameters()].count("0.parts.weights.step_size") == 1
    assert len(list(made.parameters())) == 3


def test_frozen_is_the_end() -> None:
    staged, x = model(), torch.randn(5, 16)
    set_progress(staged, 1.0)
    expected = staged.eval()(x)
    freeze(staged)
    assert torch.equal(staged(x), expected)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"until": 0.5}, {"until": 0.5}], "the shares must rise"),
        ([{"until": 0.5}, {"until": 0.4}], r"stages end at \[0\.5, 0\.4\]: the shares must rise"),
        ([{"until": 0.0, "activations": "int8"}], "each above 0"),
        ([{"until": 1.0, "activations": "int8"}], "below 1"),
        ([{"until": 0.5, "weights": "binary"}], "stages cannot change weights"),
        ([{"until": 0.5, "estimator": "clipped"}], "stages cannot change estimator"),
        ([{"until": 0.5, "norm": "rms", "bias": "scaled"}], "stages cannot change bias, norm"),
        ([{"until": 0.5, "activations": {"name": "int8", "qmax": 5}}], "qmax=5 should be"),
        ([{"activations": "int8"}], "a stage needs its end"),
        ([{"until": 0.5, "activation": "int8"}], "Did you mean 'activations'"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Quantizer.of({**CONFIG, "stages": stages})


def test_a_layer_in_full_precision_has_no_stages() -> None:
    quantizer = Quantizer.of(
        {**CONFIG, "layers": [{"match": "0", "weights": "none", "activations": "none", "transform": "none"}]}
    )
    assert quantizer.staged(quantizer.for_layer("0")) == []
    assert isinstance(quantizer.for_layer("0"), LayerOptions)
