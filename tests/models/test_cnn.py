"""The CNN against a plain nn.Sequential, its sizes and its parameter names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bitexp.models.cnn import CNN

SMALL: dict[str, Any] = {
    "shape": (1, 8, 8),
    "classes": 10,
    "widths": [4, 6, 8],
    "pool": [2, 1, 3],
    "kernel": 3,
    "dropout": 0.0,
}


def test_equals_a_sequential_of_torch_layers() -> None:
    torch.manual_seed(0)
    ours = CNN(**SMALL)
    layers: list[nn.Module] = []
    for (i, o), pool in zip(((1, 4), (4, 6), (6, 8)), SMALL["pool"], strict=True):
        conv = nn.Conv2d(i, o, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(pool)]
    theirs = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    assert len(ours.state_dict()) == len(theirs.state_dict())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x, grad = torch.randn(5, 1, 8, 8), torch.randn(5, 10)
    y, expected = ours(x), theirs(x)
    assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.backward(grad)
    expected.backward(grad)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is not None
        assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_parameter_names() -> None:
    names = [name for name, _ in CNN(**SMALL).named_parameters()]
    norm = ("norm.weight", "norm.bias")
    blocks = [f"blocks.{i}.{n}" for i in range(2) for n in ("conv.weight", *norm)]
    stem = [f"stem.{n}" for n in ("conv.weight", *norm)]
    assert names == [*stem, *blocks, "head.weight", "head.bias"]


@pytest.mark.parametrize("side", [6, 7, 8, 11])
def test_takes_every_image_that_pooling_leaves_something_of(side: int) -> None:
    x = torch.randn(2, 3, side, side + 5)
    assert CNN(**{**SMALL, "shape": x.shape[1:]})(x).shape == (2, 10)


HUGE = [10**12, 10**12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": HUGE, "pool": [2]}, "pool=.2. has 1 entries and widths=.* has 2; give one"),
        ({"widths": HUGE, "pool": [2, 8]}, "by 16, which leaves nothing of the 8x8 image"),
        ({"shape": (1, 5, 90)}, "by 6, which leaves nothing of the 5x90 image"),
        ({"widths": HUGE, "pool": [2, 2], "kernel": 4}, "kernel=4 must be odd"),
        ({"kernel": -1}, "kernel=-1 must be odd and at least 1"),
        ({"widths": []}, "widths is empty; give at least one size"),
        ({"widths": [8, 0, 8]}, "widths=.8, 0, 8. must hold sizes of at least 1"),
        ({"pool": [2, 0, 1]}, "pool=.2, 0, 1. must hold sizes of at least 1"),
        ({"dropout": -0.1}, "dropout=-0.1 must be at least 0"),
        ({"shape": (0, 8, 8)}, "choose a data set of images"),
        ({"classes": -1}, "classes=-1 must be at least 1"),
    ],
)
def test_bad_sizes_are_refused_before_anything_is_allocated(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNN(**{**SMALL, **change})
