"""Networks with the layers of PyPI bitlinear compute what ours do with `reloaded`, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bitexp.config.choices import read_choice
from bitexp.deploy.exporters import EXPORTERS
from bitexp.deploy.exporters.exporter import InexpressibleError
from bitexp.models import build_model
from bitexp.quant import quantize

SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"shape": (1, 8, 8), "classes": 10, "hidden": [16, 16]},
    "decoder": {"vocabulary": 64, "context": 16, "dim": 16, "depth": 2},
}
INPUTS = {"mlp": torch.randn(32, 1, 8, 8), "decoder": torch.arange(32).reshape(2, 16)}


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("measure", ["AbsMedian", "AbsMean"])
def test_it_is_another_implementation_of_the_same(measure: str, model: str) -> None:
    weights = {"AbsMedian": "ternary_median", "AbsMean": "ternary_mean"}[measure]
    networks = []
    for name, further in ((model, {}), (f"bitlinear_{model}", {"measure": measure})):
        torch.manual_seed(0)
        networks.append(build_model(name, **SIZES[model], **further))
    parts = {**read_choice("quantizer", "reloaded"), "weights": {"name": weights}}
    ours = {key: parts[key] for key in ("weights", "activations", "norm", "bias")}
    quantize(networks[0], ours, exclude=["embed", "head"] if model == "decoder" else ["head"])
    outputs = [network(INPUTS[model]) for network in networks]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    theirs = {name.removeprefix("network."): p for name, p in networks[1].named_parameters()}
    for name, parameter in networks[0].named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.pop(name).grad, rtol=1e-3, atol=1e-4)
    assert not theirs


@pytest.mark.parametrize("engine", ["c", "gguf", "transformers"])
@pytest.mark.parametrize("model", SIZES)
def test_its_layers_are_in_no_engine_that_would_take_them_for_plain_ones(model: str, engine: str) -> None:
    network = build_model(f"bitlinear_{model}", **SIZES[model], measure="AbsMedian").eval()
    with pytest.raises(InexpressibleError):
        EXPORTERS.get(engine)().check(network, "bytes")
