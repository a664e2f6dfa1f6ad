"""BitLinear and BitConv2d: what is saved, kept, copied and refused."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bitexp.quant.backend import Backend
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer
from bitexp.quant.parts import ACTIVATIONS
from tests.support.layers import (
    BACKENDS,
    LINEAR,
    NORMS,
    VARIANTS,
    small,
    small_of,
)  # fmt: skip
from tests.support.quantizers import MakeQuantizer as Make


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_integer_product_changes_no_bit_of_a_training_step(
    make_quantizer: Make, backend: Backend
) -> None:
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean"))
    x = torch.randn(2, 5, 40, requires_grad=True)
    expected = layer(x)
    layer.set_backend(backend)
    y = layer(x)
    assert torch.equal(y, expected)
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weights).sum(), [x, layer.weight]),
        torch.autograd.grad((expected * weights).sum(), [x, layer.weight]),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "variant"),
    [
        *itertools.product([(40,), (5, 40), (2, 3, 40), (0, 40)], LINEAR),
        *itertools.product([(4, 7, 7), (2, 4, 7, 7)], VARIANTS),
    ],
)
def test_an_activation_may_overwrite_the_output(
    make_quantizer: Make, shape: tuple[int, ...], variant: str, backend: Backend
) -> None:
    layer, _ = small_of(variant, conv=shape[-1] == 7)
    layer.set_backend(backend)
    x = torch.randn(shape, requires_grad=True)
    weights = torch.randn_like(layer(x))
    expected = torch.autograd.grad((layer(x).relu() * weights).sum(), [x, layer.weight])
    ours = torch.autograd.grad((F.relu_(layer(x)) * weights).sum(), [x, layer.weight])
    for a, e in zip(ours, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", [False, True])
def test_codes_are_saved_and_no_float_tensor_but_the_input_of_a_norm(
    make_quantizer: Make, norm: str, conv: bool
) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm)
    layer: QuantizedLayer
    if conv:
        layer, x = BitConv2d(nn.Conv2d(8, 16, 3), quantizer), torch.randn(4, 8, 6, 6)
        saved_apart = 4 * 6 * 6  # mean or 1/std at each pixel
    else:
        layer, x = BitLinear(nn.Linear(64, 32), quantizer), torch.randn(20, 64)
        saved_apart = 20  # mean, 1/std or step of each token
    x.requires_grad_()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    codes = [tensor.shape for tensor in saved if tensor.dtype == torch.int8]
    assert sorted(codes) == sorted([x.shape, layer.weight.shape])
    floats = [tensor for tensor in saved if tensor.is_floating_point()]
    large = [tensor for tensor in floats if tensor.untyped_storage().nbytes() > 4 * saved_apart]
    assert [tensor.data_ptr() for tensor in large] == ([] if norm == "none" else [x.data_ptr()])
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_survives_deepcopy_and_serialization(
    make_quantizer: Make, backend: Backend, conv: bool
) -> None:
    layer, x = small(make_quantizer("ternary_median"), conv)
    layer.set_backend(backend)
    expected = layer(x)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(stored, weights_only=False)):
        assert twin.weight is not layer.weight
        assert torch.equal(twin(x), expected)
        twin(x).sum().backward()
        assert twin.weight.grad is not None
        assert layer.weight.grad is None


def test_the_state_is_that_of_the_ordinary_layer(make_quantizer: Make) -> None:
    linear = nn.Linear(8, 4)
    layer = BitLinear(linear, make_quantizer("ternary_mean"))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert list(layer.state_dict()) == ["weight", "bias"]
    other = BitLinear(nn.Linear(8, 4), make_quantizer("ternary_mean"))
    other.load_state_dict(nn.Linear(8, 4).state_dict() | layer.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_seen_in_the_output(make_quantizer: Make, bad: float) -> None:
    layer, _ = small(make_quantizer("ternary_mean"), conv=False)
    x = torch.randn(3, 40)
    x[1, 5] = bad
    y = layer(x)
    assert y.isfinite().all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize("wrong", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_padding_that_is_not_zeros_by_number_is_refused(make_quantizer: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pads with zeros"):
        BitConv2d(nn.Conv2d(2, 2, 3, **wrong), make_quantizer("ternary_mean"))


def test_groups_of_inputs_are_refused_for_convolutions(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_mean", weights={"granularity": "group", "group_size": 2})
    with pytest.raises(ValueError, match="use channel"):
        BitConv2d(nn.Conv2d(2, 2, 1), quantizer)


def test_a_rotation_of_both_sides_is_refused_where_it_would_mix_the_groups(make_quantizer: Make) -> None:
    conv = nn.Conv2d(8, 8, 1, groups=4)
    both = make_quantizer("ternary_mean", transform={"name": "hadamard", "applies_to": "both"})
    with pytest.raises(ValueError, match="mixes the groups of a convolution"):
        BitConv2d(conv, both)
    BitConv2d(conv, make_quantizer("ternary_mean", transform="hadamard"))
    BitConv2d(nn.Conv2d(8, 8, 1), both)


@pytest.mark.parametrize("name", ["ternary_mean", "full_norm"])
def test_a_single_image_is_taken_without_a_batch(make_quantizer: Make, name: str) -> None:
    layer, x = small(make_quantizer(name), conv=True)
    assert torch.equal(layer(x[0]), layer(x[:1])[0])


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_batch_trains(make_quantizer: Make, norm: str, conv: bool) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm=norm), conv)
    empty = x[:0]
    y = layer(empty)
    assert len(y) == 0
    y.sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


EMPTY = [{"activations": name} for name in ACTIVATIONS.names()] + [
    {"gradients": {"name": "dorefa"}},
    {"gradients": {"name": "int", "over": "tensor"}},
]


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("changes", EMPTY, ids=str)
def test_an_empty_batch_teaches_no_part_anything(
    make_quantizer: Make, changes: dict[str, Any], conv: bool
) -> None:
    layer, x = small(make_quantizer("ternary_mean", **changes), conv)
    alike = copy.deepcopy(layer)
    for empty in [x[:0], *([] if conv else [x.new_empty(2, 0, x.shape[-1])])]:
        layer(empty).sum().backward()
    layer.zero_grad()
    torch.manual_seed(0)
    y = layer(x)
    torch.manual_seed(0)
    assert torch.equal(y, alike(x))
    assert y.isfinite().all()
