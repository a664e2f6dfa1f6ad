"""Learned columns, norms of outputs, gradients of few bits; the layers of OneBit, FBI-LLM and QuEST."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hadamard_transform import hadamard_transform
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.quant import BitConv2d, BitLinear, Quantizer, quantize, set_progress
from bitexp.quant.gaussian import CLIPS
from bitexp.quant.gradients import DoReFaGradients, IntGradients
from tests.support.quantizers import MakeQuantizer as Make


class SmoothSign(torch.autograd.Function):
    """The sign of xuyuzhuang11/OneBit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (1.001 - torch.tanh(ctx.saved_tensors[0]) ** 2) * grad


def one_bit(x: Tensor, w: Tensor, bias: Tensor, h: Tensor, g: Tensor) -> Tensor:
    y = F.linear(x * g, SmoothSign.apply(w)) * h
    return F.layer_norm(y, y.shape[-1:]) + bias


def fbi(x: Tensor, w: Tensor, bias: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    sign = torch.where(w >= 0, 1.0, -1.0) + (w - w.detach())
    # the identity for the weights, whatever alpha is, as the authors have it
    weights = torch.where(w >= 0, 1.0, -1.0) * alpha + beta + alpha.detach() * (sign - sign.detach())
    return F.linear(x, weights, bias)


@pytest.mark.parametrize(("preset", "theirs"), [("onebit", one_bit), ("fbi_llm", fbi)])
def test_a_layer_is_that_of_the_authors(make_quantizer: Make, preset: str, theirs: Any) -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(24, 16), make_quantizer(preset, activations="none", norm="none"))
    learned = list(layer.quantizer_parameters())
    for parameter in learned:
        parameter.data.add_(0.1 * torch.rand_like(parameter))
    x, target = torch.randn(5, 24, requires_grad=True), torch.randn(5, 16)
    y = layer(x)
    (y * target).sum().backward()
    given = (x, layer.weight, layer.bias, *learned)
    leaves = [t.detach().clone().requires_grad_() for t in given]
    expected = theirs(*leaves)
    (expected * target).sum().backward()
    assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for ours, other in zip(given, leaves, strict=True):
        assert_close(ours.grad, other.grad, rtol=1e-3, atol=1e-5 * float(other.grad.abs().max()))


def test_columns_begin_as_fbi_llm_has_it(make_quantizer: Make) -> None:
    linear = nn.Linear(24, 16)
    w = linear.weight.detach().clone()
    beta, alpha = w.mean(0), (w - w.mean(0)).abs().mean(0)
    transform = BitLinear(linear, make_quantizer("fbi_llm")).parts.transform
    assert_close(transform.constant.detach(), beta)
    assert_close(transform.factor.detach(), alpha)


@pytest.mark.parametrize("groups", [1, 2])
def test_columns_of_a_convolution_belong_to_its_channels(make_quantizer: Make, groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=groups)
    layer = BitConv2d(conv, make_quantizer("fbi_llm", activations="none", norm="none"))
    factor, constant = (p.detach() for p in layer.parts.transform.parameters())
    x, w = torch.randn(2, 4, 7, 7), torch.where(layer.weight.detach() >= 0, 1.0, -1.0)
    per_group = [t.reshape(groups, -1).repeat_interleave(6 // groups, 0) for t in (factor, constant)]
    weights = w * per_group[0][:, :, None, None] + per_group[1][:, :, None, None]
    assert_close(layer(x), F.conv2d(x, weights, layer.bias, 2, 1, 1, groups), rtol=1e-4, atol=1e-5)


def test_quest_multiplies_rotated_weights_and_inputs_as_its_authors_do(make_quantizer: Make) -> None:
    """`HadamardTrustQuantizer` of IST-DASLab/QuEST on both sides, which rotates back; here that cancels."""

    def trusted(x: Tensor, bits: int) -> Tensor:
        rotated = hadamard_transform(x)
        std = torch.sqrt(torch.mean(rotated.detach() ** 2, dim=-1, keepdim=True))
        scale = CLIPS[bits] * std + 1e-8
        step = 2 * scale / (2**bits - 1)
        xq = torch.round(rotated.detach().clamp(-scale, scale) / step + 1 / 2) * step - step / 2
        mask = (torch.abs(xq - rotated.detach()) <= std * CLIPS[bits] / (2**bits - 1)).float()
        kept = hadamard_transform(rotated * mask)
        return kept + (hadamard_transform(xq) - kept).detach()

    torch.manual_seed(0)
    quantizer = make_quantizer("quest", weights={"bits": 2}, activations={"bits": 3}, norm="none")
    layer = BitLinear(nn.Linear(32, 16), quantizer)
    x, target = torch.randn(6, 32, requires_grad=True), torch.randn(6, 16)
    y = layer(x)
    (y * target).sum().backward()
    v, w = x.detach().clone().requires_grad_(), layer.weight.detach().clone().requires_grad_()
    expected = F.linear(trusted(v, 3), trusted(w, 2), layer.bias)
    (expected * target).sum().backward()
    assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert_close(x.grad, v.grad, rtol=1e-4, atol=1e-5)
    assert_close(layer.weight.grad, w.grad, rtol=1e-4, atol=1e-5)


def test_gradients_of_dorefa_are_the_formula_with_noise_of_half_a_level() -> None:
    torch.manual_seed(0)
    grad, bits = torch.randn(4, 3, 5), 3
    torch.manual_seed(1)
    ours = DoReFaGradients(bits=bits)(grad)
    torch.manual_seed(1)
    n = 2**bits - 1
    noise = (torch.rand_like(grad) - 0.5) / n
    largest = grad.abs().amax((1, 2), keepdim=True)  # of each sample
    share = (grad / (2 * largest) + 0.5 + noise).clamp(0, 1)
    assert_close(ours, 2 * largest * (torch.round(n * share) / n - 0.5))
    assert len(ours[0].unique()) <= 2**bits


@pytest.mark.parametrize("over", ["token", "tensor"])
def test_gradients_of_integers_are_right_on_average(over: Any) -> None:
    torch.manual_seed(0)
    grad, part = torch.randn(3, 8), IntGradients(bits=4, over=over)
    draws = torch.stack([part(grad) for _ in range(4000)])
    scale = grad.abs().amax(-1 if over == "token" else None, keepdim=over == "token") / 7
    assert_close(draws[0] / scale, (draws[0] / scale).round(), rtol=0, atol=1e-4)
    assert float(((draws.mean(0) - grad) / scale).abs().max()) < 0.05
    assert not part(torch.zeros(2, 3)).any()


def test_gradients_of_integers_share_a_scale_in_a_sample_of_a_convolution() -> None:
    layer = BitConv2d(nn.Conv2d(2, 3, 1), Quantizer.of({"weights": "sign", "gradients": "int"}))
    grad = torch.randn(2, 3, 4, 4)
    codes = layer.parts.gradients(grad) / grad.abs().amax((1, 2, 3), keepdim=True) * 127
    assert_close(codes, codes.round(), rtol=0, atol=1e-3)


def test_gradients_are_quantized_in_training_and_for_all_that_comes_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4, bias=False))
    config = {"weights": "ternary_mean", "gradients": {"name": "int", "bits": 2}}
    quantize(model, Quantizer.of(config))
    x, target = torch.randn(3, 8), torch.randn(3, 4)

    def gradient() -> Tensor:
        model.zero_grad()
        torch.manual_seed(1)
        (model(x) * target).sum().backward()
        assert model[1].weight.grad is not None
        return model[1].weight.grad.clone()

    assert torch.equal(gradient(), gradient())
    torch.manual_seed(1)
    seen = IntGradients(bits=2)(target)
    inputs = model[0](x)
    assert_close(gradient(), seen.t() @ inputs, rtol=1e-5, atol=1e-6)
    model.eval()
    assert_close(gradient(), target.t() @ inputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"weights": "none", "output_norm": "layer"}, "needs weights"),
        ({"weights": "none", "gradients": "int"}, "gradients=int would do nothing"),
        ({"weights": "sign", "gradients": {"name": "int", "bits": 9}}, "from 2 to 8"),
        ({"weights": "sign", "gradients": {"name": "dorefa", "bits": 1}}, "from 2 to 8"),
        ({"weights": "sign", "transform": {"name": "columns", "init": "two"}}, "'one', 'mean' or 'svid'"),
        ({"weights": {"name": "sign", "scale": "two"}}, "'power_of_two'"),
        ({"weights": {"name": "quest", "bits": 8}}, "odd int8"),
        ({"weights": {"name": "fixed", "bits": 1.5}}, "1.58"),
        (
            {"weights": "sign", "stages": [{"until": 0.5, "gradients": "int"}]},
            "stages cannot change gradients",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Quantizer.of(config)


def test_a_rule_for_layers_that_a_model_may_have_is_no_error(make_quantizer: Make) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    rule = {"match": "*.down", "activations": "int4"}
    with pytest.raises(ValueError, match="no layer of the model is called"):
        quantize(model, make_quantizer("ternary_mean", layers=[rule]))
    quantize(model, make_quantizer("ternary_mean", layers=[{**rule, "optional": True}]))
    named = nn.ModuleDict({"o": nn.Linear(8, 8), "down": nn.Linear(8, 8), "up": nn.Linear(8, 8)})
    whole = nn.ModuleDict({"block": named})
    quantize(whole, make_quantizer("bitnet_a4_8"))
    set_progress(whole, 1.0)
    chosen = {name: layer.spec for name, layer in named.items()}
    assert {name: spec.activations.part.name for name, spec in chosen.items()} == {
        "o": "int8", "down": "int8", "up": "int4",
    }  # fmt: skip
    assert [name for name, spec in chosen.items() if spec.sparsifier] == ["o"]
    set_progress(whole, 0.5)
    assert all(layer.spec.activations.part.name == "int8" for layer in named.values())
    assert not any(layer.spec.sparsifier for layer in named.values())


def test_who_follows_the_training_says_so(make_quantizer: Make) -> None:
    following = [
        name for name in ("irnet", "recu", "bitnet_v2", "sherry") if make_quantizer(name).progressive
    ]
    assert following == ["irnet", "recu", "bitnet_v2", "sherry"]
    assert not any(make_quantizer(name).progressive for name in ("full", "ternary_mean", "onebit", "quest"))


def test_the_scale_of_fixed_weights_stays() -> None:
    for bits, count in ((1.58, 3), (4, 15)):
        config = {"weights": {"name": "fixed", "bits": bits, "granularity": "channel"}}
        layer = BitLinear(nn.Linear(16, 8), Quantizer.of(config))
        scale = layer.quantized().scale
        rows = layer.weight.detach().abs()
        assert_close(scale, rows.mean(1) if bits == 1.58 else rows.amax(1) / 7)
        layer.weight.data.mul_(3)
        assert torch.equal(layer.quantized().scale, scale)
        assert layer.spec.levels.count == count
