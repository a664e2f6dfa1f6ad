"""Activations with a learned parameter: its gradient, and what becomes of it in frozen layers and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bitexp.deploy.packed_file import load_packed, read_packed, sizes
from bitexp.kernels import KERNELS
from bitexp.quant import ACTIVATIONS, ActivationQuantizer, ActivationSpec, BitLinear, Levels, Part, Quantized
from bitexp.quant.quantizer import Quantizer
from tests.support.kernels import every_kernel
from tests.support.packed_files import REFERENCE, describe, write


class LearnedClip(ActivationQuantizer):
    """Unsigned 4-bit codes below a learned clip, as PACT has it (arXiv 1805.06085)."""

    def __init__(self, *, start: float = 2.0) -> None:
        super().__init__(ActivationSpec(Part("learned_clip", {"start": start}), Levels(0, 15)))
        self.clip = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        scale = (self.clip.detach() / 15).reshape([1] * x.dim())
        return (x / scale).round().clamp(0, 15).to(torch.int8), scale

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        (clip,) = learned
        return grad * ((x >= 0) & (x < clip)), (grad * (x >= clip)).sum()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """`activations: learned_clip`, for the test alone."""
    torch.manual_seed(0)
    with ACTIVATIONS.temporarily("learned_clip", LearnedClip):
        yield


def layer(kernel: str) -> BitLinear:
    config = {"weights": "ternary_mean", "activations": "learned_clip", "norm": "rms"}
    made = BitLinear(nn.Linear(24, 8), Quantizer.of(config))
    made.set_backend(KERNELS.get(kernel).backend)
    return made


@every_kernel
def test_its_gradient_and_the_input_s_are_the_rule_s(kernel: str) -> None:
    made = layer(kernel)
    x, target = torch.randn(6, 24, requires_grad=True), torch.randn(6, 8)
    (made(x) * target).sum().backward()
    clip = made.parts.activations.clip

    v, c = x.detach().double().requires_grad_(), clip.detach().double().requires_grad_()
    normed = F.rms_norm(v, (24,), eps=1e-5)
    clipped = torch.where(normed < c, normed.clamp(min=0), c)
    scale = clip.detach().double() / 15
    codes = (normed.detach().float() / (clip.detach() / 15)).round().clamp(0, 15).double()
    quantized = clipped + (codes * scale - clipped).detach()
    weight = made.quantized().dequantized().double()
    (F.linear(quantized, weight, made.bias.detach().double()) * target.double()).sum().backward()
    assert_close(clip.grad.double(), c.grad, rtol=1e-4, atol=1e-5)
    assert_close(x.grad.double(), v.grad, rtol=1e-3, atol=1e-5)


def test_it_lies_in_the_packed_file_counts_as_body_and_gives_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    _, x, expected = write(path, describe(activations="learned_clip"))
    loaded, _ = load_packed(path, REFERENCE)
    assert torch.equal(loaded(x), expected)
    header, tensors = file = read_packed(path)
    clips = {name: tensor for name, tensor in tensors.items() if name.endswith("activations.clip")}
    assert len(clips) == len(header["body"])
    assert all(float(clip) != 2.0 for clip in clips.values())  # what was learned, not what it began with
    body = sum(t.nbytes for n, t in tensors.items() if n.endswith((".packed", ".scale", ".clip")))
    assert sizes(file)["body_bytes"] == body
