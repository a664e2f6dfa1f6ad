"""BitLinear and BitConv2d: gradients, memory, precisions, transforms, copies, lambda, bounds."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bitexp.quant.activations.absmax import absmax_codes
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from bitexp.kernels.int8 import int8_product
from bitexp.quant import QUANTIZERS, Quantizer
from bitexp.quant.backend import Product
from bitexp.quant.layers import BitConv2d, BitLinear, QuantizedLayer, dequantize, set_lambda
from bitexp.quant.product import float_product

Make = Callable[..., Quantizer]

NORMS = ["none", "rms", "layer"]
PRODUCTS = [float_product, int8_product]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "128 levels": {"act_qmax": 128},
    "scaled bias": {"bias": "scaled"},
    "float activations": {"activations": "none"},
    "step per channel": {"granularity": "channel"},
    "binary": {"name": "binary"},
    "median": {"name": "ternary_median"},
}
"""changes of conf/quantizer/ternary_mean.yaml that every kind of layer takes"""

LINEAR = {**VARIANTS, "step per group": {"granularity": "group", "group_size": 6}}

CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "1x1": {"kernel_size": 1},
    "uneven": {"kernel_size": (3, 1), "stride": (1, 2), "padding": (2, 0)},
    "grouped": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def straight_through(value: Tensor, quantized: Tensor) -> Tensor:
    """The textbook: the quantized value forwards, the identity backwards."""
    return value + (quantized.to(value.dtype) - value).detach()


def textbook(layer: QuantizedLayer, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer in float64 by torch's own operators and autograd, around codes found in fp32."""
    dim, dims = (-1, (-1,)) if layer.conv is None else (1, (1, 2, 3))
    normed32, normed = (norm_of_torch(v, layer.norm, dim) for v in (x.detach().float(), x.double()))
    x_scale = torch.ones(())
    if qmax := layer.quantizer.act_qmax:
        absmax = normed32.abs().amax(dims, keepdim=True).clamp(min=1e-5)
        codes = (normed32 * (absmax.reciprocal() * qmax)).round().clamp(-128, 127)
        x_scale = absmax / qmax
        normed = straight_through(normed, codes.double() * x_scale.double())
    w_codes, w_scale = layer.quantizer.weights(weight.detach())
    quantized = straight_through(weight.double(), dequantize(w_codes, w_scale))
    b = None if bias is None else bias.double()
    if b is not None and layer.conv is not None:
        b = b[:, None, None]
    if b is not None and layer.quantizer.bias == "scaled":
        b = b * (x_scale * w_scale).double()
    if layer.conv is None:
        y = F.linear(normed, quantized)
    else:
        stride, padding, dilation, groups = layer.conv
        y = F.conv2d(normed, quantized, None, stride, padding, dilation, groups)
    return y if b is None else y + b


def norm_of_torch(x: Tensor, norm: str, dim: int) -> Tensor:
    """The parameter-free norms, in the formulation whose bits in fp32 are those of the layer."""
    if norm == "none":
        return x
    if norm == "rms":
        return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-5)
    last = x.movedim(dim, -1)
    return F.layer_norm(last, last.shape[-1:]).movedim(-1, dim)


def assert_equals_textbook(layer: QuantizedLayer, x: Tensor) -> None:
    """Output and all gradients, to the precision of fp32."""
    ours = [x.requires_grad_(), *layer.parameters()]
    theirs = [leaf.detach().clone().requires_grad_() for leaf in ours]
    y, expected = layer(x), textbook(layer, *theirs)
    assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    out_grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, ours, out_grad)
    for a, e in zip(grads, torch.autograd.grad(expected, theirs, out_grad.double()), strict=True):
        largest = float(e.abs().max())
        assert largest > 1e-4
        assert_close(a, e, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("shape", [(48,), (9, 48), (2, 3, 48)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", LINEAR)
def test_linear_gradients_are_the_textbook_straight_through_ones(
    make_quantizer: Make, variant: str, norm: str, bias: bool, shape: tuple[int, ...]
) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm, **LINEAR[variant])
    layer = BitLinear(nn.Linear(48, 17, bias=bias), quantizer)
    assert_equals_textbook(layer, torch.randn(shape) * 2 + 0.3)


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_convolution_gradients_are_the_textbook_straight_through_ones(
    make_quantizer: Make, variant: str, norm: str, conv: str
) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm, **VARIANTS[variant])
    layer = BitConv2d(nn.Conv2d(4, 8, **CONVS[conv]), quantizer)
    assert_equals_textbook(layer, torch.randn(3, 4, 9, 8) * 2 + 0.3)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_integer_product_changes_no_bit_of_a_training_step(
    make_quantizer: Make, product: Product
) -> None:
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean"))
    x = torch.randn(2, 5, 40, requires_grad=True)
    expected = layer(x)
    layer.product = product
    y = layer(x)
    assert torch.equal(y, expected)
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weights).sum(), [x, layer.weight]),
        torch.autograd.grad((expected * weights).sum(), [x, layer.weight]),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_only_the_gradients_that_are_asked_for_are_computed(make_quantizer: Make, bias: bool) -> None:
    layer = BitLinear(nn.Linear(6, 4, bias=bias), make_quantizer("ternary_mean"))
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.weight.requires_grad_(True)
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.weight.grad is not None


def test_a_layer_that_is_used_twice_adds_both_gradients(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(24, 24), make_quantizer("ternary_mean"))
    x = torch.randn(5, 24)
    layer(layer(x)).square().sum().backward()
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    inner = textbook(layer, x, weight, bias)
    textbook(layer, inner, weight, bias).square().sum().backward()
    for ours, theirs in ((layer.weight, weight), (layer.bias, bias)):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("shape", "variant"),
    [
        *itertools.product([(40,), (5, 40), (2, 3, 40), (0, 40)], LINEAR),
        *itertools.product([(4, 7, 7), (2, 4, 7, 7)], VARIANTS),
    ],
)
def test_an_activation_may_overwrite_the_output(
    make_quantizer: Make, shape: tuple[int, ...], variant: str, product: Product
) -> None:
    layer, _ = small_of(make_quantizer, variant, conv=shape[-1] == 7)
    layer.product = product
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
    large = [tensor for tensor in floats if tensor.numel() > saved_apart]
    assert [tensor.data_ptr() for tensor in large] == ([] if norm == "none" else [x.data_ptr()])
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_under_autocast_the_sum_stays_exact_and_gradients_are_products_of_bf16(
    make_quantizer: Make, norm: str, conv: bool
) -> None:
    layer, x = small(make_quantizer("ternary_median", norm=norm), conv)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    leaves = [x, layer.weight, layer.bias]
    out_grad = torch.randn_like(y)
    theirs = torch.autograd.grad(expected, leaves, out_grad.float())
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            ours = torch.autograd.grad(y, leaves, out_grad, retain_graph=True)
        for a, e in zip(ours, theirs, strict=True):
            assert a.dtype == torch.float32
            assert_close(a, e, rtol=0, atol=2**-7 * float(e.abs().max()))
        assert torch.equal(ours[2], theirs[2])
        assert not torch.equal(ours[1], theirs[1])


def test_under_autocast_the_factors_are_rounded_to_bf16_and_nothing_else(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm="none"), conv=False)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    out_grad = torch.randn_like(y)
    grad_x, grad_w = torch.autograd.grad(y, [x, layer.weight], out_grad)
    codes, step = absmax_codes(x.detach(), 127, (-1,))
    weights = dequantize(*layer.quantizer.weights(layer.weight)).bfloat16()
    assert torch.equal(grad_x, (out_grad @ weights).float())
    inputs = (codes * step).bfloat16().flatten(0, 1)
    assert torch.equal(grad_w, (out_grad.flatten(0, 1).t() @ inputs).float())


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_bf16_inputs_and_weights_give_the_sum_of_fp32_rounded_once(
    make_quantizer: Make, norm: str, conv: bool
) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm=norm), conv)
    layer, x = layer.bfloat16(), x.detach().bfloat16().requires_grad_()
    wide, wide_x = copy.deepcopy(layer).float(), x.detach().float().requires_grad_()
    y, expected = layer(x), wide(wide_x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    out_grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, layer.weight, layer.bias], out_grad)
    theirs = torch.autograd.grad(expected, [wide_x, wide.weight, wide.bias], out_grad.float())
    for a, e in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        assert_close(a.float(), e, rtol=0, atol=2**-6 * float(e.abs().max()))


def small(quantizer: Quantizer, conv: bool) -> tuple[QuantizedLayer, Tensor]:
    """A small layer and an input that wants its gradient."""
    if conv:
        return BitConv2d(nn.Conv2d(4, 6, 3), quantizer), torch.randn(2, 4, 7, 7, requires_grad=True)
    return BitLinear(nn.Linear(40, 24), quantizer), torch.randn(3, 5, 40, requires_grad=True)


@pytest.mark.parametrize("conv", [False, True])
def test_the_control_is_the_norm_before_an_ordinary_layer_in_every_precision(
    make_quantizer: Make, conv: bool
) -> None:
    layer, x = small(make_quantizer("full_norm"), conv)
    normed = norm_of_torch(x, "layer", 1 if conv else -1)
    plain = ordinary(layer)
    assert torch.equal(layer(x), plain(normed))
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), plain(normed)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weights).sum(), [x, layer.weight]),
        torch.autograd.grad((expected * weights).sum(), [x, layer.weight]),
        strict=True,
    ):
        assert_close(ours, theirs)


def ordinary(layer: QuantizedLayer) -> Callable[[Tensor], Tensor]:
    """The product of a layer with its latent weights, by torch."""
    if layer.conv is None:
        return lambda x: F.linear(x, layer.weight, layer.bias)
    return lambda x: F.conv2d(x, layer.weight, layer.bias, *layer.conv)


def test_checkpointing_gives_the_same_gradients(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean"), conv=False)
    again: Any = checkpoint(layer, x, use_reentrant=False)
    leaves = [x, layer.weight, layer.bias]
    expected = torch.autograd.grad(layer(x).square().sum(), leaves)
    for ours, theirs in zip(torch.autograd.grad(again.square().sum(), leaves), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def dynamo() -> Iterator[None]:
    """A compiler without what other tests left in its caches."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


INSTANTIATES = "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings(INSTANTIATES)  # torch 2.13: Dynamo does so itself
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_layer_is_traced_as_one_graph_with_the_same_bits(
    make_quantizer: Make, norm: str, product: Product
) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm=norm), conv=False)
    layer.product = product
    before = x.detach().clone()
    traced = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, expected = traced(x), layer(x)
    assert torch.equal(y, expected)
    leaves = [x, layer.weight, layer.bias]
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for a, e in zip(torch.autograd.grad(y.square().sum(), leaves), theirs, strict=True):
        assert torch.equal(a, e)
    assert torch.equal(x, before)


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings(INSTANTIATES)
def test_a_compiled_layer_computes_the_same_but_for_fused_roundings(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean"), conv=False)
    compiled = torch.compile(layer, fullgraph=True)
    y, expected = compiled(x), layer(x)
    assert_close(y, expected, rtol=1e-5, atol=1e-6)
    leaves = [x, layer.weight, layer.bias]
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for a, e in zip(torch.autograd.grad(y.square().sum(), leaves), theirs, strict=True):
        assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("sample", [(40,), (3, 40), (4, 7, 7)])
@pytest.mark.parametrize("name", ["binary", "ternary_mean", "ternary_median"])
def test_gradients_per_sample_by_vmap_equal_those_of_a_loop(
    make_quantizer: Make, name: str, sample: tuple[int, ...], product: Product
) -> None:
    conv = len(sample) == 3
    layer, _ = small(make_quantizer(name, act_qmax=128), conv)
    layer.product = product
    x = torch.randn(5, *sample)
    parameters = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(layer, values, (one,)).square().sum()

    batched = vmap(grad(loss), (None, 0))(parameters, x)
    for i, one in enumerate(x):
        layer.zero_grad()
        layer(one).square().sum().backward()
        for key, parameter in parameters.items():
            assert parameter.grad is not None
            assert_close(batched[key][i], parameter.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", ["binary", "ternary_mean", "ternary_median"])
def test_an_ensemble_by_vmap_equals_its_members(make_quantizer: Make, name: str, product: Product) -> None:
    layer, x = small(make_quantizer(name), conv=False)
    layer.product = product
    members = [{key: torch.randn_like(p) for key, p in layer.named_parameters()} for _ in range(3)]
    stacked = {key: torch.stack([m[key] for m in members]) for key in members[0]}
    outputs = vmap(lambda values: functional_call(layer, values, (x.detach(),)))(stacked)
    for member, output in zip(members, outputs, strict=True):
        assert_close(output, functional_call(layer, member, (x,)), rtol=1e-6, atol=1e-6)


def test_functional_call_uses_the_given_parameters(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("ternary_mean"), conv=False)
    values = {key: torch.randn_like(p).requires_grad_() for key, p in layer.named_parameters()}
    y = functional_call(layer, values, (x,))
    other = copy.deepcopy(layer)
    other.load_state_dict(values)
    assert torch.equal(y, other(x))
    y.sum().backward()
    assert layer.weight.grad is None
    assert values["weight"].grad is not None


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_layer_survives_deepcopy_and_serialization(
    make_quantizer: Make, product: Product, conv: bool
) -> None:
    layer, x = small(make_quantizer("ternary_median"), conv)
    layer.product = product
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


@pytest.mark.parametrize("bias", ["plain", "scaled"])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_lambda_0_is_the_norm_and_the_ordinary_layer(
    make_quantizer: Make, norm: str, conv: bool, bias: str
) -> None:
    layer, x = small(make_quantizer("ternary_mean", norm=norm, bias=bias), conv)
    if bias == "scaled":
        layer.bias = None  # it stays scaled at every lambda, as in PyPI bitlinear
    layer.set_lambda(0.0)
    normed = norm_of_torch(x, norm, 1 if conv else -1)
    expected = ordinary(layer)(normed)
    assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    leaves = [x, layer.weight]
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for a, e in zip(torch.autograd.grad(layer(x).square().sum(), leaves), theirs, strict=True):
        assert_close(a, e, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", LINEAR)
def test_lambda_1_is_the_integer_path(make_quantizer: Make, variant: str) -> None:
    layer, x = small_of(make_quantizer, variant, conv=False)
    expected = layer(x)
    layer.set_lambda(0.5)
    assert not torch.equal(layer(x), expected)
    layer.set_lambda(1.0)
    assert not layer.phasing
    assert torch.equal(layer(x), expected)
    layer.phasing = True  # the mixing path ends where the integer path is
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def small_of(make_quantizer: Make, variant: str, conv: bool) -> tuple[QuantizedLayer, Tensor]:
    """A small layer of a variant."""
    changes = {**LINEAR[variant]}
    if "group_size" in changes:
        changes["group_size"] = 8
    return small(make_quantizer("ternary_mean", **changes), conv)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("name", ["binary", "ternary_mean", "ternary_median"])
def test_lambda_one_half_is_halfway_for_activations_and_for_weights(
    make_quantizer: Make, name: str, conv: bool
) -> None:
    layer, x = small(make_quantizer(name), conv)
    layer.set_lambda(0.5)
    y = layer(x)

    normed = norm_of_torch(x, "layer", 1 if conv else -1)
    dims = (1, 2, 3) if conv else (-1,)
    step = normed.abs().amax(dims, keepdim=True) / 127
    quantized = (normed / step).round() * step
    codes, w_step = layer.quantizer.weights(layer.weight)
    halfway = copy.deepcopy(layer)
    halfway.weight = nn.Parameter((layer.weight.detach() + codes * w_step) / 2)
    assert_close(y, ordinary(halfway)((normed + quantized) / 2), rtol=1e-5, atol=1e-5)


def test_lambda_reaches_a_scaled_bias_of_a_convolution(make_quantizer: Make) -> None:
    layer, x = small(make_quantizer("reloaded"), conv=True)
    expected = layer(x)
    layer.phasing = True
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_set_lambda_reaches_every_layer_of_a_model(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_mean")
    model = nn.Sequential(
        BitLinear(nn.Linear(4, 4), quantizer), nn.Sequential(BitLinear(nn.Linear(4, 4), quantizer))
    )
    set_lambda(model, 0.25)
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    assert [(float(layer.mix), layer.phasing) for layer in layers] == [(0.25, True)] * 2


@pytest.mark.parametrize(
    ("name", "qmax", "largest"),
    [
        ("ternary_mean", 127, 132_104),
        ("ternary_mean", 128, 131_072),
        ("binary", 127, 132_104),
    ],
)
def test_more_inputs_than_fp32_can_sum_exactly_are_refused(
    make_quantizer: Make, name: str, qmax: int, largest: int
) -> None:
    quantizer = make_quantizer(name, act_qmax=qmax)
    BitLinear(nn.Linear(largest, 1, device="meta"), quantizer)
    with pytest.raises(ValueError, match="exactly"):
        BitLinear(nn.Linear(largest + 1, 1, device="meta"), quantizer)
    floats = make_quantizer(name, activations="none")
    BitLinear(nn.Linear(largest + 1, 1, device="meta"), floats)


@pytest.mark.parametrize("name", [n for n in QUANTIZERS.names() if QUANTIZERS.get(n).quantizes_weights])
def test_the_bound_holds_for_the_declared_codes_of_every_quantizer(make_quantizer: Make, name: str) -> None:
    quantizer = make_quantizer(name)
    inputs = 2**24 // (127 * max(abs(quantizer.low), abs(quantizer.high)))
    BitLinear(nn.Linear(inputs, 1, device="meta"), quantizer)
    with pytest.raises(ValueError, match=f"{inputs + 1:,} inputs"):
        BitLinear(nn.Linear(inputs + 1, 1, device="meta"), quantizer)
    with pytest.raises(ValueError, match="exactly"):
        BitConv2d(nn.Conv2d(inputs, 1, (1, 2), device="meta"), quantizer)


@pytest.mark.parametrize("wrong", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_padding_that_is_not_zeros_by_number_is_refused(make_quantizer: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pads with zeros"):
        BitConv2d(nn.Conv2d(2, 2, 3, **wrong), make_quantizer("ternary_mean"))


def test_groups_of_inputs_are_refused_for_convolutions(make_quantizer: Make) -> None:
    quantizer = make_quantizer("ternary_mean", granularity="group", group_size=2)
    with pytest.raises(ValueError, match="use channel"):
        BitConv2d(nn.Conv2d(2, 2, 1), quantizer)


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
