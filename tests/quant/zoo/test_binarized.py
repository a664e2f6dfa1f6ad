"""Layers of binarized networks against their authors' code, transcribed: outputs and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.quant import BitConv2d
from bitexp.quant.quantizer import Quantizer
from tests.support.quantizers import MakeQuantizer as Make

SHARE = 0.7


class Clipped(torch.autograd.Function):
    """The sign of BNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0].abs() <= 1)


class ErrorDecay(torch.autograd.Function):
    """`BinaryQuantize` of htqin/IR-Net."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        t = 10 ** (-3 + 4 * SHARE)
        k = max(1 / t, 1)
        return k * t * (1 - torch.pow(torch.tanh(ctx.saved_tensors[0] * t), 2)) * grad


def through(forward: Tensor, surrogate: Tensor) -> Tensor:
    """The values of one with the gradient of another, as BiBench writes it."""
    return forward.detach() - surrogate.detach() + surrogate


def sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def mean_of_row(w: Tensor) -> Tensor:
    return w.abs().mean((1, 2, 3), keepdim=True).detach()


def parabolas(x: Tensor) -> Tensor:
    """The surrogate of react.py in BiBench."""
    mask1, mask2, mask3 = (x < -1).float(), (x < 0).float(), (x < 1).float()
    out1 = -mask1 + (x * x + 2 * x) * (1 - mask1)
    out2 = out1 * mask2 + (-x * x + 2 * x) * (1 - mask2)
    return out2 * mask3 + 1 - mask3


def bnn(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return F.conv2d(Clipped.apply(x), Clipped.apply(w), padding=1)


def xnor(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    factor = x.abs().mean((1, 2, 3), keepdim=True).detach()
    x = through(factor * sign(x), x.clamp(-1, 1))
    return F.conv2d(x, through(mean_of_row(w) * sign(w), w.clamp(-1, 1)), padding=1)


def xnor_pp(x: Tensor, w: Tensor, factor: Tensor) -> Tensor:
    x, w = through(sign(x), x.clamp(-1, 1)), through(sign(w), w.clamp(-1, 1))
    return F.conv2d(x, w, padding=1) * factor[:, None, None]


def react(x: Tensor, w: Tensor, threshold: Tensor) -> Tensor:
    x = x + threshold[:, None, None]
    x = through(sign(x), parabolas(x))
    return F.conv2d(x, through(mean_of_row(w) * sign(w), w.clamp(-1, 1)), padding=1)


def bireal(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return react(x, w, torch.zeros(x.shape[1]))


def irnet(x: Tensor, w: Tensor, _: Tensor) -> Tensor:
    flat = w.flatten(1)
    bw = flat - flat.mean(-1, keepdim=True)
    bw = bw / bw.std(-1, keepdim=True)
    sw = torch.pow(2.0, (torch.log(bw.abs().mean(-1)) / math.log(2)).round()).detach()
    bw = (ErrorDecay.apply(bw) * sw[:, None]).view_as(w)
    return F.conv2d(ErrorDecay.apply(x), bw, padding=1)


def recu(x: Tensor, w: Tensor, factor: Tensor) -> Tensor:
    """Without the factor 2 sqrt 2 of the deviation, and without that of the activations."""
    w0 = w - w.mean((1, 2, 3), keepdim=True)
    w1 = w0 / w0.flatten(1).std(-1)[:, None, None, None]
    rise = (0.99 - 0.85) / (math.e - 1)
    tau = rise * math.e**SHARE + 0.85 - rise
    bound = float(-w1.detach().abs().mean() * math.log(2 - 2 * tau))
    w2 = w1.clamp(-bound, bound)
    y = F.conv2d(through(sign(x), parabolas(x)), through(sign(w2), w2), padding=1)
    return y * factor[:, None, None]


LAYERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bnn": bnn, "xnor_net": xnor, "xnor_pp": xnor_pp, "bireal": bireal, "reactnet": react,
    "irnet": irnet, "recu": recu,
}  # fmt: skip


@pytest.mark.parametrize("preset", LAYERS)
def test_a_layer_is_that_of_the_authors(make_quantizer: Make, preset: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    layer = BitConv2d(conv, make_quantizer(preset, norm="none"))
    layer.weight.data.mul_(8)  # so that some are clipped
    layer.set_progress(SHARE)
    learned = list(layer.quantizer_parameters())
    for parameter in learned:
        parameter.data.copy_(torch.rand_like(parameter) + 0.2)
    x, target = torch.randn(3, 6, 7, 7, requires_grad=True), torch.randn(3, 8, 7, 7)
    y = layer(x)
    (y * target).sum().backward()

    theirs = [t.detach().clone().requires_grad_() for t in (x, layer.weight, *learned)]
    expected = LAYERS[preset](theirs[0], theirs[1], theirs[2] if learned else torch.zeros(6))
    (expected * target).sum().backward()
    assert_close(y, expected, rtol=1e-5, atol=1e-4)
    for ours, other in zip((x, layer.weight, *learned), theirs, strict=True):
        assert ours.grad is not None
        assert other.grad is not None
        assert float(other.grad.abs().max()) > 0
        assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-5 * float(other.grad.abs().max()))


def test_a_zero_is_a_positive_sign() -> None:
    quantizer = {"weights": {"name": "sign", "scale": "one"}, "activations": "sign"}
    layer = BitConv2d(nn.Conv2d(1, 1, 1, bias=False), Quantizer.of(quantizer))
    layer.weight.data.zero_()
    assert layer.quantized().codes.flatten().tolist() == [1]
    assert layer(torch.zeros(1, 1, 1, 1)).item() == 1.0


def test_a_row_of_equal_weights_has_finite_gradients(make_quantizer: Make) -> None:
    for preset in ("irnet", "recu"):
        for inputs in (1, 2):
            layer = BitConv2d(nn.Conv2d(inputs, 2, 1), make_quantizer(preset))
            layer.weight.data.fill_(0.5)
            layer(torch.randn(2, inputs, 3, 3)).sum().backward()
            assert layer.weight.grad is not None
            assert layer.weight.grad.isfinite().all()


def test_an_estimator_of_activations_that_is_not_known_is_told() -> None:
    config = {"weights": "sign", "activations": {"name": "sign", "estimator": "poly"}}
    with pytest.raises(ValueError, match=r"unknown estimator 'poly'.*polynomial"):
        Quantizer.of(config)
