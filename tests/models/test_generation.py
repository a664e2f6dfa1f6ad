"""What is drawn, against transformers' warpers; what is generated, against passes without a cache."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from bitexp.models.decoder import Decoder
from bitexp.models.generation import Sampling, generate
from bitexp.quant.convert import quantize
from tests.support.quantizers import MakeQuantizer

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)
TIED = st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=1, max_size=12)


def warped(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """transformers' probabilities, in the order in which its own generation applies them."""
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    scores = logits[None]
    for warper in warpers:
        scores = warper(None, scores)
    return scores.softmax(-1)[0]


@given(
    values=LOGITS | TIED,
    temperature=st.floats(0.1, 5),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 0.999),
)
@example(values=[1.0, 3.0, 2.0, 3.0], temperature=0.7, top_k=2, top_p=0.4)
def test_probabilities_equal_those_of_the_warpers_of_transformers(
    values: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.tensor(values)
    gaps = logits.sort().values.diff()
    assume(bool(((gaps == 0) | (gaps > 1e-4)).all()))  # closer ones are equal after rounding, or not
    if top_p is not None:  # exactly at the edge, rounding decides who is kept
        sums = warped(logits, temperature, top_k, None).double().sort(descending=True).values.cumsum(0)
        assume((sums - top_p).abs().min() > 1e-5)
    ours = Sampling(temperature, top_k, top_p).probabilities(logits)
    theirs = warped(logits, temperature, top_k, top_p)
    kept = ours > 0
    assert torch.allclose(ours.sort().values, theirs.sort().values, rtol=1e-4, atol=1e-7)
    shares = (logits / temperature).softmax(-1)[kept]  # of equal logits either may be kept
    assert torch.allclose(ours[kept], shares / shares.sum(), rtol=1e-4, atol=1e-7)
    assert kept.all() or logits[kept].min() >= logits[~kept].max()


@given(values=LOGITS | TIED, seed=st.integers(0, 99))
def test_greedy_is_argmax_and_so_are_top_1_and_the_least_temperature_and_nucleus(
    values: list[float], seed: int
) -> None:
    logits = torch.tensor(values)
    for sampling in (
        Sampling(0.0, seed=seed),
        Sampling(1.0, top_k=1, seed=seed),
        Sampling(1.0, top_p=1e-9, seed=seed),
        Sampling(1e-30, seed=seed),
        Sampling(5e-324, top_k=3, top_p=0.9, seed=seed),
    ):
        token = sampling.choose(logits, sampling.draws(logits.device))
        assert logits[token] > logits.max() - 1e-5  # of equal ones any
        if sampling.temperature == 0:
            assert token == int(logits.argmax())


def test_draws_have_their_probabilities() -> None:
    logits, sampling = torch.tensor([1.0, -2.0, 0.5, 0.0]), Sampling(0.8, top_k=3)
    draws = sampling.draws(logits.device)
    counts = torch.bincount(torch.tensor([sampling.choose(logits, draws) for _ in range(3000)]), minlength=4)
    assert counts[1] == 0
    assert torch.allclose(counts / 3000, sampling.probabilities(logits), atol=0.03)  # three deviations


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999, 1.0])
def test_a_nucleus_of_a_large_vocabulary_is_that_of_all_sorted(spread: float, top_p: float) -> None:
    """Whether a few of the likeliest tokens hold it or not, and with equal ones among them."""
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(0)).mul(8).round() / 8 * spread
    ours = Sampling(1.0, top_p=top_p).probabilities(logits)
    ordered, order = logits.softmax(-1).sort(descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    assert torch.equal((ours > 0).nonzero()[:, 0], order[kept].sort().values)
    assert torch.allclose(ours[order[kept]], ordered[kept] / ordered[kept].sum(), rtol=1e-4)


def test_no_token_is_drawn_from_what_is_no_number() -> None:
    sampling = Sampling(1.0)
    with pytest.raises(ValueError, match="logits that are no numbers"):
        sampling.choose(torch.tensor([0.0, math.nan]), sampling.draws(torch.device("cpu")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be 0"),
        ({"temperature": math.inf}, "temperature=inf must be 0"),
        ({"temperature": math.nan}, "temperature=nan must be 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_k": -3}, "top_k=-3 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.01}, "top_p=1.01 must be above 0"),
        ({"top_p": math.nan}, "top_p=nan must be above 0"),
        ({"temperature": 0.0, "top_k": 5}, "top_k and top_p would do nothing"),
        ({"temperature": 0.0, "top_p": 1.0}, "top_k and top_p would do nothing"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


def build(context: int) -> Decoder:
    """A decoder with weights so large that it says something else each time."""
    torch.manual_seed(0)
    model = Decoder(
        vocabulary=19,
        context=context,
        dim=16,
        depth=2,
        heads=2,
        kv_heads=1,
        mlp_ratio=2.0,
        activation="silu",
        sub_norm=False,
        tied=False,
        rope_base=100.0,
        norm_eps=1e-5,
        init_std=0.7,
        dropout=0.0,
    )
    return model.double().eval()  # no two logits are so near that rounding decides


def followed(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy generation, one whole pass for each token."""
    window, found = prompt[-model.context :], []
    for _ in range(count):
        if len(window) > model.context:
            window = window[-max(1, model.context // 2) :]
        window = [*window, int(model(torch.tensor([window]))[0, -1].argmax())]
        found.append(window[-1])
    return found


@pytest.mark.parametrize("preset", ["full", "ternary_mean"])
@given(
    context=st.integers(1, 9),
    prompt=st.lists(st.integers(0, 18), min_size=1, max_size=12),
    count=st.integers(1, 24),
)
@example(context=9, prompt=[3], count=24)
@example(context=4, prompt=[1, 2, 3, 4, 5, 6], count=9)
def test_generation_equals_a_whole_pass_for_every_token_beyond_the_context_too(
    make_quantizer: MakeQuantizer, preset: str, context: int, prompt: list[int], count: int
) -> None:
    model = build(context)
    if preset != "full":
        quantize(model, make_quantizer(preset), ["*"], ["embed", "head"])
    made = list(itertools.islice(generate(model, prompt, Sampling(0.0)), count))
    assert made == followed(model, prompt, count)


def test_the_model_says_something_else_each_time() -> None:
    """Else the equality above would be cheap."""
    assert len(set(itertools.islice(generate(build(9), [3], Sampling(0.0)), 24))) > 5


def test_every_token_is_read_once_until_the_later_half_of_a_full_context_is_read_anew() -> None:
    model = build(8)
    read: list[list[int]] = []
    model.register_forward_pre_hook(lambda _, args: read.append(args[0][0].tolist()))
    made = list(itertools.islice(generate(model, [1, 2, 3], Sampling(0.0)), 12))
    assert [len(tokens) for tokens in read] == [3, 1, 1, 1, 1, 1, 4, 1, 1, 1, 1, 4]
    assert read[6] == made[2:6]
    assert read[11] == made[7:11]
    read.clear()
    next(generate(model, list(range(12)), Sampling(0.0)))
    assert read == [list(range(4, 12))]


def test_a_seed_gives_its_text_again_and_another_seed_another() -> None:
    model = build(9)

    def text(**options: Any) -> list[int]:
        return list(itertools.islice(generate(model, [1], Sampling(1.5, **options)), 30))

    assert text(seed=3) == text(seed=3)
    assert len({tuple(text(seed=seed)) for seed in range(4)}) == 4
    assert text(seed=3, top_k=5) != text(seed=3)


def test_an_empty_prompt_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="the prompt is empty: give at least one token"):
        next(generate(build(4), [], Sampling()))
