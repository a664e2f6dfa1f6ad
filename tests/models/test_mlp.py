"""The MLP against a plain nn.Sequential, its sizes and its parameter names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bitexp.models.mlp import MLP

SMALL: dict[str, Any] = {
    "shape": (2, 3, 4),
    "classes": 5,
    "hidden": [16, 8],
    "activation": "relu",
    "dropout": 0.0,
}
MODULES = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@pytest.mark.parametrize("activation", MODULES)
def test_equals_a_sequential_of_torch_layers(activation: str) -> None:
    torch.manual_seed(0)
    ours = MLP(**{**SMALL, "activation": activation})
    act = MODULES[activation]
    layers = [nn.Linear(24, 16), act(), nn.Linear(16, 8), act(), nn.Linear(8, 5)]
    theirs = nn.Sequential(nn.Flatten(), *layers)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(4, 2, 3, 4)
    assert_close(ours(x), theirs(x))


def test_parameter_names_and_count() -> None:
    model = MLP(**{**SMALL, "shape": (1, 28, 28), "classes": 10, "hidden": [112, 112]})
    assert sum(p.numel() for p in model.parameters()) == 101_706
    layers = ("layers.0", "layers.1", "head")
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": [10**12, 0]}, "must hold sizes of at least 1"),
        ({"hidden": []}, "hidden is empty; give at least one size, for example hidden=.64."),
        ({"hidden": [10**12], "activation": "relu6"}, "relu6 is not known. Did you mean 'relu'"),
        ({"hidden": [10**12], "dropout": 1.5}, "dropout=1.5 must be at least 0 and below 1"),
        ({"hidden": [10**12], "shape": (1, -8, 8)}, "choose a data set of images"),
        ({"hidden": [10**12], "classes": 0}, "classes=0 must be at least 1"),
    ],
)
def test_bad_sizes_are_refused_before_anything_is_allocated(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**{**SMALL, **change})
