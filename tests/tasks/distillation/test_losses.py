"""The losses of distillation against torch's own, closed forms and the papers' formulas."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.tasks.distillation.losses import AttentionLoss, HiddenLoss, LogitsLoss, Seen


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5)])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_logits_are_followed_by_the_forward_divergence(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = draw(*shape), draw(*shape, seed=1)
    p, q = ((x / temperature).softmax(-1) for x in (teacher, student))
    by_hand = (p * (p / q).log()).sum(-1).mean()
    ours = LogitsLoss(temperature=temperature)(Seen(student), Seen(teacher))
    distributions = [torch.distributions.Categorical(logits=x / temperature) for x in (teacher, student)]
    by_torch = torch.distributions.kl_divergence(*distributions).mean()
    torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, by_torch, rtol=1e-12, atol=0)
    assert LogitsLoss(temperature=temperature)(Seen(teacher), Seen(teacher)) == 0


def test_at_temperature_one_the_gradient_is_that_of_soft_targets() -> None:
    """And so (softmax(student) - softmax(teacher)) over the number of predictions."""
    student, teacher = draw(3, 4, 5).requires_grad_(), draw(3, 4, 5, seed=1)
    (ours,) = torch.autograd.grad(LogitsLoss()(Seen(student), Seen(teacher)), student)
    soft = F.cross_entropy(student.flatten(0, 1), teacher.softmax(-1).flatten(0, 1))
    (of_soft_targets,) = torch.autograd.grad(soft, student)
    torch.testing.assert_close(ours, of_soft_targets, rtol=1e-12, atol=1e-15)
    closed = (student.detach().softmax(-1) - teacher.softmax(-1)) / 12
    torch.testing.assert_close(ours, closed, rtol=1e-12, atol=1e-15)


def test_squared_temperature_keeps_gradients_as_they_are_when_it_is_high() -> None:
    """For logits small beside T the gradient of each is (student - teacher) / (classes T^2), both centred."""
    student, teacher, temperature = draw(6, 5).requires_grad_(), draw(6, 5, seed=1), 1e4
    loss = LogitsLoss(temperature=temperature, t_squared=True)(Seen(student), Seen(teacher))
    plain = LogitsLoss(temperature=temperature)(Seen(student), Seen(teacher))
    assert loss.item() == pytest.approx(temperature**2 * plain.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(gradient, gap.detach() / 5 / 6, rtol=1e-3, atol=1e-6)


def test_hidden_states_are_compared_by_direction() -> None:
    """|a/|a| - b/|b||^2 = 2 - 2 cos(a, b), a mean over tokens and a sum over layers."""
    one, other = [draw(2, 3, 8), draw(2, 3, 8, seed=1)], [draw(2, 3, 8, seed=2), draw(2, 3, 8, seed=3)]
    student, teacher = (Seen(draw(2, 3, 5), {"hidden": states}) for states in (one, other))
    layers = [(2 - 2 * F.cosine_similarity(a, b, dim=-1)).mean() for a, b in zip(one, other, strict=True)]
    assert HiddenLoss()(student, teacher).item() == pytest.approx(sum(layers).item(), rel=1e-6)
    assert HiddenLoss(layers=[-1])(student, teacher).item() == pytest.approx(layers[1].item(), rel=1e-6)
    plain = HiddenLoss(normalize=False)(student, teacher)
    squares = sum(float((a - b).square().mean()) for a, b in zip(one, other, strict=True))
    assert plain.item() == pytest.approx(squares, rel=1e-6)


def test_features_of_convolutions_are_their_channels() -> None:
    one, other = draw(2, 8, 3, 4), draw(2, 8, 3, 4, seed=1)
    found = HiddenLoss().distance(one, other)
    expected = (2 - 2 * F.cosine_similarity(one, other, dim=1)).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def relations(states: np.ndarray, heads: int, temperature: float) -> np.ndarray:
    """Algorithm 1 of the paper: `[B, L, H d] -> [B, heads, L, L]`."""
    batch, length, width = states.shape
    cut = states.reshape(batch, length, heads, width // heads)
    cut = cut / np.linalg.norm(cut, axis=-1, keepdims=True)
    products = np.exp(np.einsum("blhd,bmhd->bhlm", cut, cut) / temperature)
    return np.clip(products / products.sum(-1, keepdims=True), 1e-8, None)


@pytest.mark.parametrize(("heads", "temperature"), [(None, 1.0), (2, 0.5), (1, 1.0)])
def test_attention_is_compared_as_in_the_paper(heads: int | None, temperature: float) -> None:
    """Also where the teacher is wider and keys and values have fewer heads."""
    widths = {"query": (16, 32), "key": (8, 16), "value": (8, 16)}
    student, teacher = (
        Seen(
            draw(2, 6, 5),
            {
                part: [draw(2, 6, w[who], seed=s + 10 * who + layer) for layer in range(2)]
                for part, w, s in parts
            },
            heads=4,
        )
        for who in (0, 1)
        for parts in [[(part, w, seed) for seed, (part, w) in enumerate(widths.items())]]
    )
    loss = AttentionLoss(layer=-1, heads=heads, temperature=temperature)
    loss.check(student, teacher)
    expected = 0.0
    for part in widths:
        of_teacher, of_student = (
            relations(seen.states[part][1].numpy(), heads or 4, temperature) for seen in (teacher, student)
        )
        expected += (of_teacher * np.log(of_teacher / of_student)).sum(-1).mean()
    assert expected > 1e-3
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-9)


def of_width(width: int, layers: int = 2, tokens: int = 6, heads: int | None = 4) -> Seen:
    states = [draw(2, tokens, width) for _ in range(layers)]
    return Seen(draw(2, 5), dict.fromkeys(("hidden", "query", "key", "value"), states), heads)


@pytest.mark.parametrize(
    ("loss", "teacher", "said"),
    [
        (HiddenLoss(), of_width(16, layers=3), "the student has 2 and the teacher 3; name those"),
        (HiddenLoss(layers=[2]), of_width(16, layers=3), "hidden.layers=2 is no layer of both networks"),
        (HiddenLoss(), of_width(8), "the student's are [6, 16] and the teacher's [6, 8]; use logits"),
        (
            AttentionLoss(layer=-3),
            of_width(16),
            "attention.layer=-3 is no layer of both networks: there are 2",
        ),
        (AttentionLoss(), of_width(16, tokens=7), "the student has 6 of them and the teacher 7"),
        (AttentionLoss(), of_width(18), "states of the teacher are 18 wide and cannot be cut into 4 heads"),
        (AttentionLoss(heads=3), of_width(18), "states of the student are 16 wide and cannot be cut into 3"),
    ],
)
def test_what_cannot_be_compared_is_said(loss: HiddenLoss | AttentionLoss, teacher: Seen, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        loss.check(of_width(16), teacher)


def test_a_student_without_heads_must_be_told_how_to_cut() -> None:
    headless = of_width(16, heads=None)
    with pytest.raises(ValueError, match="takes those of the student, and it has none"):
        AttentionLoss().check(headless, headless)
    AttentionLoss(heads=2).check(headless, headless)
    assert math.isfinite(AttentionLoss(heads=2)(headless, headless))
