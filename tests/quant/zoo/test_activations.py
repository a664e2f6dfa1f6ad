"""Activation quantizers: codes against their papers' formulas, learned parameters by finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.deploy.frozen import freeze_layer
from bitexp.kernels import KERNELS
from bitexp.quant import ACTIVATIONS, ActivationQuantizer, BitConv2d, BitLinear, Quantized
from bitexp.quant.gaussian import CLIPS
from bitexp.quant.options import build
from bitexp.quant.quantizer import Quantizer
from bitexp.quant.spec import Geometry, Part
from tests.support.kernels import every_kernel


def part(name: str, conv: bool = False, features: int = 24, **options: Any) -> ActivationQuantizer:
    """An activation quantizer as a layer has it."""
    at = Geometry(((1, 1), (1, 1), (1, 1), 1) if conv else None)
    made: ActivationQuantizer = build("activations", Part(name, options), at, features=features)
    return made


def values(made: ActivationQuantizer, x: Tensor) -> Tensor:
    return made.dequantized(*made.codes(x, (-1,)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_int_is_int8_and_int4_with_other_bits(bits: int) -> None:
    x = torch.randn(40, 24)
    high = 2 ** (bits - 1) - 1
    largest = x.abs().amax(-1, keepdim=True)
    assert_close(values(part("int", bits=bits), x), (x * high / largest).round() * largest / high)
    scale = x.abs().mean(-1, keepdim=True) / math.sqrt(high)
    expected = (x / scale).round().clamp(-high - 1, high) * scale
    assert_close(values(part("int", bits=bits, scale="absmean"), x), expected)


def test_int_with_the_bits_of_int8_and_int4_has_their_bits() -> None:
    x = torch.randn(40, 24)
    for name, options in (("int8", {"bits": 8}), ("int4", {"bits": 4, "scale": "absmean"})):
        ours, theirs = (p.codes(x, (-1,)) for p in (part("int", **options), part(name)))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_normal_distribution_has_the_zeros_and_clips_that_the_paper_of_a4_8_reports() -> None:
    codes, _ = part("int4").codes(torch.randn(200, 4096, generator=torch.Generator().manual_seed(0)), (-1,))
    shares = [(codes == code).float().mean().item() for code in (0, 7, -8)]
    root = math.sqrt(2 / math.pi) / math.sqrt(7)
    expected = [math.erf(0.5 * root / math.sqrt(2)), norm.sf(6.5 * root), norm.sf(7.5 * root)]
    assert shares == pytest.approx(expected, abs=3e-3)
    assert shares[0] == pytest.approx(0.12, abs=2e-3)


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_unsigned_has_the_largest_on_the_highest_code_and_nothing_below_zero(bits: int) -> None:
    x = torch.randn(40, 24)
    step = x.amax(-1, keepdim=True) / (2**bits - 1)
    assert_close(values(part("unsigned", bits=bits), x), (x.clamp(min=0) / step).round() * step)
    assert values(part("unsigned"), -torch.rand(2, 24)).abs().max() == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_dorefa_is_quantize_k_of_its_paper(bits: int) -> None:
    x, n = torch.randn(40, 24), 2**bits - 1
    made = part("dorefa", bits=bits)
    assert_close(values(made, x), torch.round(n * x.clamp(0, 1)) / n)
    (grad,) = made.gradients(torch.ones_like(x), x, Quantized(*made.codes(x, (-1,))))
    v = x.clone().requires_grad_()
    v.clamp(0, 1).sum().backward()
    assert torch.equal(grad, v.grad)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
def test_quest_is_its_authors_quantizer(bits: int) -> None:
    """`TrustQuantizer` of IST-DASLab/QuEST, centred."""
    x, grad = torch.randn(40, 24), torch.randn(40, 24)
    std = torch.sqrt(torch.mean(x**2, dim=-1, keepdim=True))
    scale = CLIPS[bits] * std + 1e-8
    step = 2 * scale / (2**bits - 1)
    xq = torch.round(x.clamp(-scale, scale) / step + 1 / 2) * step - step / 2
    mask = (torch.abs(xq - x) <= std * CLIPS[bits] / (2**bits - 1)).float()
    made = part("quest", bits=bits)
    codes = made.codes(x, (-1,))
    assert_close(made.dequantized(*codes), xq)
    assert bits > 4 or 0 < float(mask.mean()) < 1
    assert torch.equal(made.gradients(grad, x, Quantized(*codes))[0], grad * mask)


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_the_clips_of_quest_have_the_least_error_for_a_normal_distribution(bits: int) -> None:
    def error(clip: float) -> float:
        levels = np.linspace(-clip, clip, 2**bits)
        edges = [-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf]
        pieces = zip(levels, edges[:-1], edges[1:], strict=True)
        # E[(x - c)^2] between a and b in closed form
        return sum(
            (1 + c * c) * (norm.cdf(b) - norm.cdf(a))
            + (a * norm.pdf(a) if np.isfinite(a) else 0)
            - (b * norm.pdf(b) if np.isfinite(b) else 0)
            - 2 * c * (norm.pdf(a) - norm.pdf(b))
            for c, a, b in pieces
        )

    best = CLIPS[bits]
    assert error(best) <= min(error(best * 1.01), error(best * 0.99))


LEARNED: dict[str, dict[str, Any]] = {
    "lsq": {"bits": 3},
    "lsq unsigned": {"bits": 3, "signed": False},
    "lsq_plus": {"bits": 3},
    "pact": {"bits": 3, "start": 1.3, "decay": 0.0},
}


@pytest.mark.parametrize("name", LEARNED)
def test_learned_ranges_have_the_gradient_of_their_surrogate(name: str) -> None:
    """Central differences of the textbook's form, in which rounding is the identity plus a constant."""
    torch.manual_seed(0)
    made = part(name.split()[0], **LEARNED[name])
    if not made.calibrated:
        made.calibrate(torch.randn(64, 24))
        made.step_size.data.mul_(0.8)
    x, grad = torch.randn(64, 24), torch.randn(64, 24)
    codes, scale = made.codes(x, (-1,))
    with torch.no_grad():
        of_x, *of_learned = made.gradients(grad, x, Quantized(codes, scale), *made.learned())
    levels = made.spec.levels
    factor = getattr(made, "gradient_scale", 1.0)
    learned = [p.detach().double() for p in made.learned()]

    def quantized(x: Tensor, *parameters: Tensor) -> Tensor:
        if name == "pact":
            return torch.minimum(x.clamp(min=0), parameters[0])
        step, shift = parameters[0], parameters[1] if len(parameters) > 1 else torch.zeros(())
        start, base = learned[0], learned[1] if len(learned) > 1 else torch.zeros(())
        ratio = (x0 - base) / start
        rounding = ratio.round() - ratio
        v = ((x - shift) / step).clamp(levels.low, levels.high)
        inside = (ratio >= levels.low) & (ratio <= levels.high)
        return torch.where(inside, v + rounding, v) * step + shift

    x0, h = x.double(), 1e-5

    def loss(x: Tensor, *parameters: Tensor) -> Tensor:
        return (grad.double() * quantized(x, *parameters)).sum()

    for number, ours in enumerate(of_learned):
        up, down = ([p + (i == number) * s for i, p in enumerate(learned)] for s in (h, -h))
        theirs = (loss(x0, *up) - loss(x0, *down)) / (2 * h)
        expected = theirs * (factor if number == 0 else 1)
        assert float(ours) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)
    v = x0.clone().requires_grad_()
    loss(v, *learned).backward()
    assert_close(of_x.double(), v.grad, rtol=1e-5, atol=1e-6)


def test_the_clip_of_pact_gets_the_gradient_of_its_l2_loss() -> None:
    made = part("pact", start=10.0, decay=0.01)
    x = torch.randn(4, 24)
    with torch.no_grad():
        _, of_clip = made.gradients(torch.ones_like(x), x, Quantized(*made.codes(x, (-1,))), *made.learned())
    assert float(of_clip) == pytest.approx(0.1)


CONFIG: dict[str, Any] = {"weights": "ternary_mean", "norm": "layer"}


def test_a_range_begins_with_the_first_training_batch_and_only_there() -> None:
    torch.manual_seed(0)
    layer = BitLinear(nn.Linear(24, 8), Quantizer.of({**CONFIG, "activations": "lsq"}))
    act = layer.parts.activations
    before = act.step_size.item()
    x = 3 * torch.randn(16, 24)
    layer.eval()(x)
    assert act.step_size.item() == before
    layer.train()(x)
    normed = F.layer_norm(x, (24,))
    assert act.step_size.item() == pytest.approx(2 * float(normed.abs().mean()) / math.sqrt(7), rel=1e-5)
    again = BitLinear(nn.Linear(24, 8), Quantizer.of({**CONFIG, "activations": "lsq"}))
    again.load_state_dict(layer.state_dict())
    act.step_size.data.mul_(2)
    again.load_state_dict(layer.state_dict())
    again(10 * x)
    assert again.parts.activations.step_size.item() == act.step_size.item()


@every_kernel
def test_an_offset_leaves_the_padding_of_a_convolution_at_zero(kernel: str) -> None:
    torch.manual_seed(0)
    config = {**CONFIG, "norm": "none", "activations": {"name": "lsq_plus", "bits": 3}}
    layer = BitConv2d(nn.Conv2d(4, 6, 3, padding=1, stride=2), Quantizer.of(config))
    layer.set_backend(KERNELS.get(kernel).backend)
    x = torch.rand(2, 4, 7, 7) + 1  # far from zero: the offset is not
    target = torch.randn(2, 6, 4, 4)
    y = layer(x)
    (y * target).sum().backward()
    act = layer.parts.activations
    assert float(act.shift.detach()) > 1
    dequantized = act.dequantized(*act.codes(x, (-3, -2, -1)))
    w = layer.quantized().dequantized().requires_grad_()
    expected = F.conv2d(dequantized, w, layer.bias, 2, 1)
    (expected * target).sum().backward()
    assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert_close(layer.weight.grad, w.grad, rtol=1e-4, atol=1e-4)
    frozen = freeze_layer(layer, "auto", KERNELS.get(kernel))
    assert torch.equal(frozen(x), layer.eval()(x))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("int", {"bits": 9}, "from 2 to 8"),
        ("unsigned", {"bits": 8}, "codes are int8"),
        ("dorefa", {"bits": 0}, "from 1 to 7"),
        ("lsq", {"bits": 8, "signed": False}, "from 1 to 7"),
        ("pact", {"start": -1.0}, "above 0"),
        ("quest", {"bits": 8}, "odd int8"),
        ("sign", {"scale": "max"}, "'one' or 'mean'"),
        ("int", {"scale": "max"}, "'absmax' or 'absmean'"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Quantizer.of({**CONFIG, "activations": {"name": name, **options}})
    assert name in ACTIVATIONS.names()
