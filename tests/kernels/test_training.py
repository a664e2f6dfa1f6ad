"""The compiled training step of the CPU against torch's operators and the textbook estimator."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from bitexp.kernels import KERNELS
from bitexp.kernels.cpu import training
from bitexp.kernels.cpu.training import CpuBackend
from bitexp.quant import Quantizer
from bitexp.quant.absmax import absmax_codes
from bitexp.quant.backend import TORCH, Call
from bitexp.quant.backward import width
from bitexp.quant.layers import BitConv2d, BitLinear, quantized_layers, set_backend
from bitexp.quant.norms import normalize

Make = Callable[..., Quantizer]

pytestmark = pytest.mark.skipif(KERNELS.get("cpu").unavailable("cpu") is not None, reason="no numba")

NORMS = ["none", "rms", "layer"]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "128 levels": {"activations": {"qmax": 128}},
    "scaled bias": {"bias": "scaled"},
    "scale per channel": {"weights": {"granularity": "channel"}},
    "binary": {"weights": "binary"},
    "median": {"weights": "ternary_median"},
}

SHAPES = [(48,), (9, 48), (2, 3, 48), (4, 48, 48)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def compiled(layer: nn.Module) -> Any:
    """The same layer or model with the training step of `kernel=cpu`."""
    set_backend(layer, CpuBackend())
    return layer


def call_of(layer: BitLinear, dtype: torch.dtype = torch.float32) -> Call:
    """What the layer hands to the training step."""
    return Call(layer.spec, CpuBackend(), dtype, dtype, fused=True)


def norm_of_torch(x: Tensor, norm: str) -> Tensor:
    if norm == "none":
        return x
    if norm == "rms":
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    return F.layer_norm(x, x.shape[-1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_and_gradients_are_the_textbook_straight_through_ones(
    make_quantizer: Make, variant: str, norm: str, bias: bool, shape: tuple[int, ...]
) -> None:
    quantizer = make_quantizer("ternary_mean", norm=norm, **VARIANTS[variant])
    layer = BitLinear(nn.Linear(48, 20, bias=bias), quantizer)
    x = (2 * torch.randn(shape) + 1).requires_grad_()
    quantized = layer.quantized()
    w_scale = quantized.scale
    _, codes, scale, *_ = CpuBackend().forward(x, layer.bias, quantized.codes, w_scale, call_of(layer))
    assert codes.dtype == torch.int8
    assert codes.shape == x.shape
    assert scale is not None

    leaves = [leaf.detach().double().requires_grad_() for leaf in (x, *layer.parameters())]
    normed, latent = norm_of_torch(leaves[0], norm), leaves[1]
    inputs = normed + (codes * scale - normed).detach()
    weights = latent + (quantized.dequantized() - latent).detach()
    expected = F.linear(inputs, weights)
    if bias:
        per_token = (scale * w_scale).double() if layer.spec.bias == "scaled" else 1.0
        expected = expected + leaves[2] * per_token

    y = compiled(layer)(x)
    assert y.grad_fn is not None
    assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    out_grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], out_grad)
    for a, e in zip(grads, torch.autograd.grad(expected, leaves, out_grad.double()), strict=True):
        assert_close(a.double(), e, rtol=1e-5, atol=2e-6 * float(e.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_from_the_normed_input_on_the_forward_has_the_bits_of_the_reference(
    make_quantizer: Make, variant: str, bias: bool
) -> None:
    quantizer = make_quantizer("ternary_mean", norm="none", **VARIANTS[variant])
    layer = BitLinear(nn.Linear(100, 70, bias=bias), quantizer)
    for x in (torch.randn(33, 100), torch.randn(3, 100) * 1e6, torch.zeros(2, 100), torch.ones(1, 100)):
        expected = layer(x)
        fused = compiled(copy.deepcopy(layer))
        assert torch.equal(fused(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fused(x), expected.bfloat16())


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_fused_norm_has_the_bits_of_torch(make_quantizer: Make, norm: Any) -> None:
    x = torch.randn(2048, 512) * torch.rand(2048, 1) + torch.randn(2048, 1) / 100
    layer = BitLinear(nn.Linear(512, 8), make_quantizer("ternary_mean", norm=norm))
    w_codes, w_scale, _ = layer.quantized()
    _, codes, scale, mean, rstd = CpuBackend().forward(x, None, w_codes, w_scale, call_of(layer))
    normed, expected_mean, expected_rstd = normalize(x, norm, -1)
    expected, expected_scale = absmax_codes(normed, 127, (-1,))
    assert torch.equal(codes, expected)
    assert scale is not None
    assert rstd is not None
    assert expected_rstd is not None
    assert torch.equal(scale, expected_scale)
    assert torch.equal(rstd, expected_rstd)
    assert_close(mean, expected_mean, rtol=0, atol=0)  # None for rms


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 256, 300, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_is_added_up_over_tokens_in_the_order_of_torch(
    tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for features in (64, 192):
        x = torch.randn(tokens, features).to(dtype)
        expected = x.float().sum(0)
        assert training.adds_as_torch()
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "sum", None)  # it is not asked
            assert_close(training.token_sums(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("x", [torch.randn(9, 48), torch.randn(64, 64).t(), torch.randn(9, 64).double()])
def test_what_compiled_sums_do_not_take_is_added_up_by_torch(x: Tensor) -> None:
    assert_close(training.token_sums(x), x.float().sum(0), rtol=0, atol=0)


def test_where_torch_adds_in_another_order_its_own_sum_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "adds_as_torch", lambda: False)
    monkeypatch.setattr(training.compiled(), "column_sums", None)
    x = torch.randn(9, 64)
    assert_close(training.token_sums(x), x.sum(0), rtol=0, atol=0)


def test_evaluation_has_the_bits_of_the_reference_and_training_goes_on_after_it(make_quantizer: Make) -> None:
    layer, x = BitLinear(nn.Linear(64, 32), make_quantizer("ternary_mean")), torch.randn(50, 64)
    layer.eval()
    expected = layer(x)
    fused = compiled(copy.deepcopy(layer))
    assert torch.equal(fused(x), expected)
    fused.train()
    assert_close(fused(x), expected)
    assert fused(x.requires_grad_()).grad_fn is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_parts_give_the_gradients_of_one(
    make_quantizer: Make, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    layer = compiled(BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean")))
    x, out_grad = torch.randn(500, 40, requires_grad=True), torch.randn(500, 24, dtype=dtype)

    def step() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], out_grad)]

    one = step()
    monkeypatch.setattr("bitexp.quant.backward.PART", 1)
    assert width(40, 24) < 500
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, e in zip(step(), one, strict=True):
        assert_close(a, e, rtol=tolerance, atol=tolerance * float(e.detach().abs().max()))


def test_threads_compute_what_one_does(make_quantizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitexp.kernels.cpu.training.WORTH", 1)
    layer = compiled(BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean")))
    x, threads = torch.randn(501, 40, requires_grad=True), torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            y = layer(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    for a, e in zip(*results, strict=True):
        assert_close(a, e, rtol=1e-5, atol=1e-5 * float(e.detach().abs().max()))


@pytest.mark.parametrize("norm", NORMS)
def test_codes_are_saved_and_no_float_tensor_but_the_input_of_a_norm(make_quantizer: Make, norm: str) -> None:
    layer = compiled(BitLinear(nn.Linear(64, 32), make_quantizer("ternary_mean", norm=norm)))
    x, saved = torch.randn(20, 64, requires_grad=True), list[Tensor]()
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    large = [t for t in saved if t.is_floating_point() and t.untyped_storage().nbytes() > 3 * 80]
    assert [t.data_ptr() for t in large] == ([] if norm == "none" else [x.data_ptr()])
    assert sorted(t.shape for t in saved if t.dtype == torch.int8) == sorted([x.shape, layer.weight.shape])
    y.relu_().sum().backward()  # the output is no view, so it may be overwritten
    assert x.grad is not None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["input", "weight"])
@pytest.mark.parametrize("name", ["ternary_mean", "ternary_median"])
def test_a_value_that_is_not_finite_is_seen_in_the_output(
    make_quantizer: Make, name: str, where: str, bad: float
) -> None:
    layer, x = BitLinear(nn.Linear(80, 64), make_quantizer(name)), torch.randn(5, 80)
    with torch.no_grad():
        (x if where == "input" else layer.weight)[2, 3] = bad
    expected = layer(x)
    fused = compiled(layer)(x)
    assert torch.equal(fused.isfinite(), expected.isfinite())
    if where == "input" or name == "ternary_mean" or bad != bad:
        assert not fused.isfinite().all()


@pytest.mark.parametrize(("need_x", "need_w"), [(True, False), (False, True)])
def test_only_the_gradients_that_are_asked_for_are_computed(
    make_quantizer: Make, need_x: bool, need_w: bool
) -> None:
    layer = compiled(BitLinear(nn.Linear(6, 4), make_quantizer("ternary_mean")))
    layer.weight.requires_grad_(need_w)
    layer.bias.requires_grad_(False)
    x = torch.randn(3, 6, requires_grad=need_x)
    layer(x).sum().backward()
    assert (x.grad is not None) == need_x
    assert (layer.weight.grad is not None) == need_w


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_answered_in_kind(make_quantizer: Make, dtype: torch.dtype) -> None:
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean")).to(dtype)
    x = torch.randn(7, 40, dtype=dtype, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sum(), [x, layer.weight])
    y = compiled(layer)(x)
    assert y.dtype == dtype
    for a, e in zip(torch.autograd.grad(y.sum(), [x, layer.weight]), expected, strict=True):
        assert a.dtype == dtype
        assert_close(a, e, rtol=0, atol=2**-6 * float(e.abs().max()))


@pytest.mark.parametrize("name", ["ternary_mean", "ternary_median"])
def test_a_default_dtype_of_bf16_changes_nothing(make_quantizer: Make, name: str) -> None:
    layer = compiled(BitLinear(nn.Linear(80, 64), make_quantizer(name)))
    x = torch.randn(7, 80, requires_grad=True)
    results = []
    for default in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(default)
        try:
            y = layer(x)
            results.append([y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])])
        finally:
            torch.set_default_dtype(torch.float32)
    for a, e in zip(*results, strict=True):
        assert torch.equal(a, e)


def test_inputs_and_gradients_in_any_layout_are_taken(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean"))
    x = torch.randn(40, 6, 5).permute(2, 1, 0).requires_grad_()
    expected = torch.autograd.grad(layer(x).sum(), [x, layer.weight, layer.bias])  # strides of 0
    ours = torch.autograd.grad(compiled(layer)(x).sum(), [x, layer.weight, layer.bias])
    for a, e in zip(ours, expected, strict=True):
        assert_close(a, e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))


def test_gradients_of_gradients_go_by_torch(make_quantizer: Make) -> None:
    layer = BitLinear(nn.Linear(12, 8), make_quantizer("ternary_mean"))
    x = torch.randn(5, 12, requires_grad=True)

    def penalty() -> Tensor:
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = penalty()
    compiled(layer)
    assert_close(penalty(), expected, rtol=1e-4, atol=1e-4)
    assert float(expected.abs().max()) > 0


def test_transforms_see_through_it(make_quantizer: Make) -> None:
    layer = compiled(BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean")))
    x, parameters = torch.randn(4, 3, 40), dict(layer.named_parameters())

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, values, (sample,)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))({k: v.detach() for k, v in parameters.items()}, x)
    for i, sample in enumerate(x):
        alone = torch.autograd.grad(loss(parameters, sample), list(parameters.values()))
        for name, e in zip(parameters, alone, strict=True):
            assert_close(together[name][i], e, rtol=1e-4, atol=1e-4)
    rows = torch.eye(3)[:, None, :, None].expand(3, 4, 3, 24)
    y = layer(x.requires_grad_())
    batched = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)[0]
    for row, b in zip(rows, batched, strict=True):
        assert_close(b, torch.autograd.grad(y, x, row, retain_graph=True)[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(make_quantizer: Make, reentrant: bool) -> None:
    layer = compiled(BitLinear(nn.Linear(40, 24), make_quantizer("ternary_mean")))
    x = torch.randn(6, 40, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(layer.weight.grad, expected[1])


def test_convolutions_groups_and_empty_batches_go_by_torch(make_quantizer: Make) -> None:
    conv = compiled(BitConv2d(nn.Conv2d(4, 6, 3), make_quantizer("ternary_mean")))
    groups = make_quantizer("ternary_mean", weights={"granularity": "group", "group_size": 6})
    grouped = compiled(BitLinear(nn.Linear(12, 6), groups))
    single = compiled(BitLinear(nn.Linear(1, 6), make_quantizer("ternary_mean", norm="none")))
    plain = compiled(BitLinear(nn.Linear(12, 6), make_quantizer("ternary_mean")))
    inputs = (torch.randn(2, 4, 7, 7), torch.randn(5, 12), torch.randn(5, 1), torch.randn(0, 12))
    for layer, x in zip((conv, grouped, single, plain), inputs, strict=True):
        layer(x.requires_grad_()).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape


def test_a_layer_survives_deepcopy_and_serialization(make_quantizer: Make) -> None:
    layer, x = compiled(BitLinear(nn.Linear(8, 6), make_quantizer("ternary_median"))), torch.randn(4, 8)
    layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), layer(x))


def test_the_cpu_kernel_brings_it(make_quantizer: Make) -> None:
    kernel = KERNELS.get("cpu")
    model = nn.Sequential(BitLinear(nn.Linear(8, 6), make_quantizer("ternary_mean")))
    set_backend(model, kernel.backend)
    assert isinstance(quantized_layers(model)["0"].backend, CpuBackend) == torch.cpu._is_vnni_supported()
    set_backend(model, TORCH)
    assert quantized_layers(model)["0"].backend is TORCH
