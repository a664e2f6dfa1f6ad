"""Top-k: which inputs count, ties, gradients, and that masking commutes with absmax codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitexp.deploy.frozen import freeze
from bitexp.kernels import KERNELS
from bitexp.quant import BitConv2d, BitLinear, set_backend
from bitexp.quant.activations.int8 import absmax_codes
from bitexp.quant.options import LayerOptions
from bitexp.quant.sparsifiers import TopK, largest
from bitexp.quant.spec import Part

KERNEL_NAMES = [name for name in ("reference", "int8", "cpu") if not KERNELS.get(name).unavailable("cpu")]


@given(st.integers(1, 6), st.integers(1, 12), st.data())
def test_so_many_are_kept_and_none_that_is_smaller_than_one_left_out(
    rows: int, size: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    x = torch.randint(0, 4, (rows, size)).float()  # many are equal
    kept = largest(x, count)
    assert (kept.sum(-1) == count).all()
    for row, mask in zip(x, kept, strict=True):
        if count < size:
            assert row[mask].min() >= row[~mask].max()


def test_among_equals_the_first_are_kept() -> None:
    assert largest(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]), 2).tolist() == [
        [False, True, True, False, False]
    ]


@pytest.mark.parametrize(("keep", "block", "kept"), [(0.5, None, 16), (0.25, 8, 8), (0.01, None, 1)])
def test_values_that_count_are_exactly_as_before(keep: float, block: int | None, kept: int) -> None:
    x = torch.randn(4, 32)
    sparse = TopK(keep=keep, block=block)(x, -1)
    count = sparse != 0
    assert (count.sum(-1) == kept).all()
    assert torch.equal(sparse[count], x[count])
    if block is not None:
        assert (count.reshape(4, -1, block).sum(-1) == round(keep * block)).all()


def test_the_gradient_passes_to_every_input() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    grad = torch.randn(4, 32)
    (TopK()(x, -1) * grad).sum().backward()
    assert torch.equal(x.grad, grad)


def test_masking_commutes_with_absmax_codes() -> None:
    x = torch.randn(50, 64)
    mask = largest(x.abs(), 32)
    codes, _ = absmax_codes(x, 127, (-1,))
    assert torch.equal(codes * mask, absmax_codes(x * mask, 127, (-1,))[0])


@pytest.mark.parametrize(
    ("changes", "words"), [({"keep": 0.0}, "keep=0.0 must be above 0"), ({"block": 0}, "block=0 must be")]
)
def test_options_out_of_their_range_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LayerOptions(Part("ternary_mean"), Part("int8"), sparsifier=Part("top_k", changes))


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("activations", ["int8", "int4", "none"])
@pytest.mark.parametrize("make", ["linear", "convolution"])
def test_frozen_equals_evaluated_to_the_bit(kernel: str, activations: str, make: str) -> None:
    options = LayerOptions(
        Part("ternary_mean"), Part.of(activations), sparsifier=Part("top_k", {"keep": 0.5}), norm="rms"
    )
    linear = make == "linear"
    layer = BitLinear(nn.Linear(40, 12), options) if linear else BitConv2d(nn.Conv2d(8, 4, 3), options)
    x = torch.randn(7, 40) if linear else torch.randn(3, 8, 6, 6)
    model = nn.Sequential(layer)
    set_backend(model, KERNELS.get(kernel).backend)
    expected = model.eval()(x)
    freeze(model, "auto", KERNELS.get(kernel))
    assert torch.equal(model(x), expected)
