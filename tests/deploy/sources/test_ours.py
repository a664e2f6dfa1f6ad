"""Runs and packed files as sources: the weights of the plain network, and the network as it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitexp.common.errors import UserError
from bitexp.deploy.sources import find_source
from bitexp.models import MODELS
from tests.support.packed_files import MODEL_ARGUMENTS, SHAPE, describe, write
from tests.support.training import Train

PLAIN = ("ternary_mean", "lsq", "dlt", "ttq", "onebit", "fbi_llm", "quest", "ternary_hadamard")


@pytest.mark.parametrize("quantizer", PLAIN)
def test_what_codes_stand_for_multiplies_as_the_packed_layer_does(tmp_path: Path, quantizer: str) -> None:
    """The product of a layer on floats, where activations are not quantized, transform and shift included."""
    path = tmp_path / "packed.safetensors"
    changes = {"activations": None, "norm": "none", "output_norm": "none"}
    write(path, describe("mlp", quantizer, **changes))
    source = find_source(str(path))
    weights, model = source.weights(), source.model(kernel="reference")
    plain = MODELS.get("mlp")(shape=SHAPE, classes=5, **MODEL_ARGUMENTS["mlp"])
    assert weights.keys() == plain.state_dict().keys()
    layer, x = model.get_submodule("layers.0"), torch.randn(7, 64)
    expected = x @ weights["layers.0.weight"].t() + weights["layers.0.bias"]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_run_gives_its_latents_or_what_its_codes_stand_for(train: Train) -> None:
    run = train("quantizer=lsq").folder
    source = find_source(str(run))
    latents = source.weights()
    assert latents.keys() == {"layers.0.weight", "layers.0.bias", "head.weight", "head.bias"}
    assert source.learned().keys() == {"layers.0"}
    x = torch.randn(3, *SHAPE)
    model = source.model()
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.unlink()
    packed = find_source(str(run))
    assert torch.equal(packed.model()(x), model(x))
    assert (
        len(packed.weights()["layers.0.weight"][0].unique())
        <= 16
        < len(latents["layers.0.weight"][0].unique())
    )
    with pytest.raises(UserError, match="no last checkpoint any more"):
        packed.weights("last")


def test_a_folder_of_runs_is_a_source_where_it_holds_one(train: Train) -> None:
    run = train().folder
    assert find_source(str(run.parent)).identity == run.name
    train("seed=1")
    with pytest.raises(UserError, match="holds 2 finished runs: name one of them"):
        find_source(str(run.parent))


@pytest.mark.parametrize("text", ["", "???", "nowhere", "a\0b", "x" * 5000])
def test_a_text_that_names_no_source_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"start\.from"):
        find_source(text)
