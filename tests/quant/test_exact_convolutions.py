"""Sums of convolutions are exact whatever torch is told about its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import convolution
from bitexp.quant.layers import BitConv2d
from tests.support.kernels import AVAILABLE
from tests.support.quantizers import make_quantizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:TF32 acceleration:UserWarning"
)  # switching oneDNN off says so


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "as it comes": nullcontext,
    "without oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),  # NNPACK, from batches of 16 on
    "medium": lambda: matmul_precision("medium"),
}

SHAPES = {
    "3x3": (nn.Conv2d(32, 32, 3, padding=1), 32),
    "1x1": (nn.Conv2d(32, 32, 1), 32),
    "strided": (nn.Conv2d(32, 24, (3, 1), stride=(1, 2), padding=(2, 0)), 32),
    "dilated": (nn.Conv2d(32, 24, 3, dilation=2), 32),
    "grouped": (nn.Conv2d(32, 24, 3, padding=1, groups=4), 32),
    "depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32), 32),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(shape: str, direct: bool, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fp64; `direct` is oneDNN's, the other what goes everywhere."""
    if direct and not convolution.DIRECT:
        pytest.skip("torch has no oneDNN")
    monkeypatch.setattr(convolution, "DIRECT", direct)
    conv, channels = SHAPES[shape]
    x = torch.randint(-127, 128, (20, channels, 14, 13)).float()
    w = torch.randint(-1, 2, conv.weight.shape).float()
    options = BitConv2d(conv, make_quantizer("ternary_mean")).spec.conv
    assert options is not None
    expected = F.conv2d(x.double(), w.double(), None, *options).float()
    with SETTINGS[setting]():
        assert torch.equal(convolution.exact_conv(x, w, options), expected)


@pytest.mark.parametrize("kernel", AVAILABLE)
def test_a_layer_has_the_same_bits_without_onednn(kernel: str) -> None:
    """In training, in evaluation, and frozen."""
    layer = BitConv2d(nn.Conv2d(32, 32, 3, padding=1), make_quantizer("ternary_mean"))
    layer.set_backend(KERNELS.get(kernel).backend)
    frozen, x = freeze_layer(layer, "auto", KERNELS.get(kernel)), torch.randn(20, 32, 14, 14)
    expected = layer(x)
    with torch.backends.mkldnn.flags(enabled=False):
        for y in (layer(x), layer.eval()(x), frozen(x)):
            assert torch.equal(y, expected)


def test_an_empty_batch_and_vmap_are_taken() -> None:
    layer = BitConv2d(nn.Conv2d(4, 6, 3), make_quantizer("ternary_mean")).eval()
    x = torch.randn(3, 4, 7, 8)
    assert layer(x[:0]).shape == (0, 6, 5, 6)
    alone: Tensor = torch.vmap(layer)(x[:, None])
    assert torch.equal(alone[:, 0], layer(x))


def test_an_exported_layer_has_the_bits_without_onednn() -> None:
    layer, x = BitConv2d(nn.Conv2d(8, 6, 3), make_quantizer("ternary_mean")).eval(), torch.randn(20, 8, 7, 8)
    exported = torch.export.export(layer, (x,), strict=False).module()
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(exported(x), layer(x))
