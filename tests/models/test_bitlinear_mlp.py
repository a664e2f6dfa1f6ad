"""The MLP of PyPI bitlinear computes what ours does with the preset `reloaded`, gradients and all."""

from __future__ import annotations

import pytest
import torch

from bitexp.config.choices import read_choice
from bitexp.models import build_model
from bitexp.quant import quantize

SHAPE = (1, 8, 8)


@pytest.mark.parametrize("measure", ["AbsMedian", "AbsMean"])
def test_it_is_another_implementation_of_the_same(measure: str) -> None:
    weights = {"AbsMedian": "ternary_median", "AbsMean": "ternary_mean"}[measure]
    networks = []
    for name, further in (("mlp", {}), ("bitlinear_mlp", {"measure": measure})):
        torch.manual_seed(0)
        networks.append(build_model(name, shape=SHAPE, classes=10, hidden=[16, 16], **further))
    parts = {**read_choice("quantizer", "reloaded"), "weights": {"name": weights}}
    ours = {key: parts[key] for key in ("weights", "activations", "norm", "bias")}
    quantize(networks[0], ours, exclude=["head"])
    images = torch.randn(32, *SHAPE)
    outputs = [network(images) for network in networks]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    theirs = dict(networks[1].named_parameters(prefix=""))
    for name, parameter in networks[0].named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[f"network.{name}"].grad, rtol=1e-3, atol=1e-4)
