"""What analyses say about runs whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from bitexp.claims.analyses import ANALYSES, Evidence
from bitexp.claims.analyses.doubling import horizontal
from bitexp.claims.analyses.scaling import fitted
from bitexp.claims.record import Known
from bitexp.common.errors import UserError

Axes = Mapping[str, Mapping[str, Any]]


def labelled(**axes: list[Any]) -> Axes:
    return {name: {str(value): value for value in values} for name, values in axes.items()}


def run(score: float, better: str = "max", weights: float = 1.0, steps: int = 1) -> Known:
    facts = {"headline": "test/score", "better": better, "steps": str(steps), "seed": "0"}
    metrics = {"test/score": score, "val/score": score, "quant/zeros": score / 2}
    metrics["size/total_weights"] = weights
    return Known("id", facts, metrics)


def evidence(axes: Axes, seeds: int, make: Callable[..., Known]) -> Evidence:
    """All runs of a sweep; `make` gets the choices and the seed."""
    empty = Evidence(axes, {}, seeds)
    return Evidence(axes, {p: {s: make(*p, s) for s in range(seeds)} for p in empty.places()}, seeds)


def noisy(rng: random.Random, **scores: float) -> Callable[[str, int], Known]:
    return lambda choice, seed: run(scores[choice] + rng.gauss(0, 0.001))


def test_differences_are_judged_against_the_margin() -> None:
    axes = labelled(quantizer=["control", "same", "worse", "better"])
    make = noisy(random.Random(0), control=0.8, same=0.8, worse=0.7, better=0.9)
    analysis = ANALYSES.get("difference")(
        axis="quantizer", control="control", margin=0.005, claimed=["same", "better"], also=["quant/zeros"]
    )
    answer = analysis.answer(evidence(axes, 10, make))
    assert [row.word for row in answer.findings] == ["", "equivalent", "worse", "better"]
    assert answer.standing == "holds"
    assert answer.findings[2].extra == {"quant/zeros": "0.3501"}
    strict = ANALYSES.get("difference")(axis="quantizer", control="control", margin=0.005)
    assert strict.answer(evidence(axes, 10, make)).standing == "holds in part"


def test_less_is_better_where_the_metric_says_so() -> None:
    analysis = ANALYSES.get("difference")(axis="q", control="a", margin=0.005, holds=["worse"])
    rng = random.Random(0)
    losses = {"a": 1.0, "b": 2.0}
    made = evidence(labelled(q=["a", "b"]), 5, lambda c, s: run(losses[c] + rng.gauss(0, 0.01), "min"))
    answer = analysis.answer(made)
    assert (answer.findings[1].word, answer.better, answer.standing) == ("worse", "lower", "holds")


def test_a_missing_seed_is_no_verdict() -> None:
    analysis = ANALYSES.get("difference")(axis="q", control="a", margin=0.005)
    whole = evidence(labelled(q=["a", "b"]), 5, noisy(random.Random(0), a=0.8, b=0.9))
    runs = {place: dict(seeds) for place, seeds in whole.runs.items()}
    del runs["a",][3]
    answer = analysis.answer(Evidence(whole.axes, runs, 5))
    assert answer.findings[1].verdict is None
    assert answer.findings[1].word == answer.standing == "not yet run"


def test_robustness_is_the_share_of_good_settings() -> None:
    axes = labelled(latents=["fp32", "bf16"], lr=[1, 2, 3, 4], decay=[0, 1])
    bad = {"fp32": {"4"}, "bf16": {"3", "4"}}
    analysis = ANALYSES.get("robustness")(axis="latents", control="fp32", over=["lr", "decay"], margin=0.1)

    def make(latents: str, lr: str, decay: str, seed: int) -> Known:
        return run(0.5 if lr in bad[latents] else 0.9 + 0.001 * seed)

    answer = analysis.answer(evidence(axes, 2, make))
    assert [row.ours for row in answer.findings] == [{0: 0.75, 1: 0.75}, {0: 0.5, 1: 0.5}]
    assert answer.findings[1].extra == {"share, bootstrap over seeds": "50%"}
    assert len(answer.figures) == 1


def test_doubling_finds_the_factor_between_curves() -> None:
    """Losses fall with the square root of the size; ours needs 2 ** 1.5 times as much."""
    axes = labelled(q=["full", "ternary"], dim=[32, 64, 128, 256])
    rng = random.Random(0)

    def make(q: str, dim: str, seed: int) -> Known:
        size = float(dim) / (2**1.5 if q == "ternary" else 1)
        return run(-math.log2(size) + rng.gauss(0, 1e-3), "min", weights=float(dim) ** 2)

    analysis = ANALYSES.get("doubling")(axis="q", control="full", size="dim", margin=0.1, doublings=1.5)
    answer = analysis.answer(evidence(axes, 5, make))
    assert answer.findings[0].mean == pytest.approx(1.5, abs=0.01)
    assert answer.findings[0].extra["factor of dim"].startswith("2.83 [2.8")
    assert answer.findings[0].extra["factor of parameters"].startswith(("7.99", "8.00", "8.01"))
    assert answer.findings[0].extra["beyond the control"] == "10 of 20"  # ours of 32 and 64
    assert answer.standing == "holds"


def test_curves_are_read_within_and_beyond_their_ends() -> None:
    base = [(0.0, 0.0), (1.0, 1.0), (2.0, 1.5)]
    assert horizontal([(3.0, 0.5)], base) == 2.5
    assert horizontal([(3.0, 2.0)], base) == 0.0  # on the last piece, prolonged to 3
    assert horizontal([(0.0, -1.0)], base) == 1.0  # on the first one, to -1


def test_fitted_exponents_are_those_of_the_law() -> None:
    sizes, data = np.geomspace(1e4, 1e6, 5), np.geomspace(100, 1600, 5)
    points = [(n, d, 1.5 + 30 / n**0.35 + 8 / d**0.5) for n in sizes for d in data]
    assert fitted(points) == pytest.approx((0.35, 0.5), abs=0.01)


def test_scaling_finds_how_the_gap_changes_with_data() -> None:
    axes = labelled(q=["full", "ternary"], dim=[16, 32, 64], epochs=[1, 2, 4])
    rng = random.Random(0)

    def make(q: str, dim: str, epochs: str, seed: int) -> Known:
        gap = 0.1 - 0.02 * math.log2(float(epochs)) + 1 / float(dim) if q == "ternary" else 0.0
        loss = 2 + 4 / float(dim) + 1 / float(epochs) + gap + rng.gauss(0, 1e-4)
        return run(loss, "min", weights=float(dim), steps=100 * int(epochs))

    analysis = ANALYSES.get("scaling")(axis="q", control="full", size="dim", data="epochs", margin=0.005)
    answer = analysis.answer(evidence(axes, 3, make))
    assert answer.findings[1].mean == pytest.approx(-0.02, abs=1e-3)
    assert (answer.findings[1].word, answer.standing) == ("better", "holds")
    assert set(answer.findings[1].extra) == {"exponent of parameters", "exponent of data"}


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("difference", {"control": "fulll"}, "the control 'fulll' is not among q. Did you mean 'full'?"),
        ("difference", {"axis": "p"}, "the axis 'p' is not in the sweep"),
        ("difference", {"margin": 0.0}, "margin=0 should be above 0"),
        ("difference", {"holds": ["good"]}, "holds names 'good'"),
        ("difference", {"shown": ["binary"]}, "shown 'binary' is not among q"),
        ("robustness", {"over": ["dim"]}, "over=['dim'] should be two axes"),
        ("robustness", {"over": ["q", "dim"]}, "a map of fewer than 4 settings"),
        ("doubling", {"size": "dim"}, "one dim does not say what another is worth"),
        ("doubling", {"size": "epochs"}, "size=epochs is no axis"),
        ("scaling", {"size": "dim", "data": "epochs"}, "its axes should be q, dim and epochs alone"),
    ],
)
def test_what_cannot_be_analysed_is_told(name: str, arguments: dict[str, Any], sentence: str) -> None:
    analysis = ANALYSES.get(name)(**{"axis": "q", "control": "full", "margin": 0.1, **arguments})
    found = "\n".join(analysis.flaws(labelled(q=["full", "ternary"], dim=[32])))
    assert sentence in found


def test_another_metric_has_its_own_better_end() -> None:
    """A lower loss is better also where the headline is an accuracy."""

    def make(choice: str, seed: int) -> Known:
        one = run(0.8)
        loss = {"a": 1.0, "b": 0.5}[choice] + 0.001 * seed * (choice == "b")
        return Known("id", one.facts, {**one.metrics, "test/loss": loss, "quant/zeros": loss})

    axes = labelled(q=["a", "b"])
    known: dict[str, Any] = {"axis": "q", "control": "a", "margin": 0.01}
    answer = ANALYSES.get("difference")(**known, metric="test/loss").answer(evidence(axes, 3, make))
    assert (answer.findings[1].word, answer.better) == ("better", "lower")
    unclear = ANALYSES.get("difference")(**known, metric="quant/zeros")
    assert any("better should be higher or lower" in flaw for flaw in unclear.flaws(axes))
    told = ANALYSES.get("difference")(**known, metric="quant/zeros", better="higher")
    assert list(told.flaws(axes)) == []
    assert told.answer(evidence(axes, 3, make)).findings[1].word == "worse"


def test_a_metric_that_runs_have_not_measured_is_named() -> None:
    axes = labelled(q=["a", "b"])
    analysis = ANALYSES.get("difference")(axis="q", control="a", margin=0.1, metric="test/acuracy")
    with pytest.raises(UserError, match=r"has no test/acuracy\. Did you mean 'test/score'"):
        analysis.answer(evidence(axes, 2, lambda choice, seed: run(0.8)))
    lost = ANALYSES.get("difference")(axis="q", control="a", margin=0.1, also=["time/step_ms"])
    assert list(lost.flaws(axes)) == [
        "time/step_ms is not kept of runs: what is begins with val/, test/, quant/, size/"
    ]


def test_robustness_needs_a_validation() -> None:
    def make(*choices: Any) -> Known:
        one = run(0.8)
        return Known("id", one.facts, {"test/score": 0.8})

    axes = labelled(q=["a", "b"], lr=[1, 2], decay=[0, 1])
    analysis = ANALYSES.get("robustness")(axis="q", control="a", over=["lr", "decay"], margin=0.1)
    with pytest.raises(UserError, match=r"has no val/score: data\.val_size has to be above 0"):
        analysis.answer(evidence(axes, 2, make))


def test_rounding_in_fp32_is_no_spread_over_seeds() -> None:
    """One example of 360 more on each seed: that is the same difference, as in a report."""
    right = {"a": (173, 180, 350), "b": (174, 181, 351)}
    make: Callable[..., Known] = lambda choice, seed: run(float(np.float32(right[choice][seed] / 360)))  # noqa: E731
    analysis = ANALYSES.get("difference")(axis="q", control="a", margin=0.01)
    answer = analysis.answer(evidence(labelled(q=["a", "b"]), 3, make))
    assert len(set(answer.findings[1].differences)) > 1
    assert (answer.findings[1].word, answer.standing) == ("undecided", "undecided")


@pytest.mark.parametrize(
    ("scores", "standing"),
    [
        ({"b": 0.8, "c": 0.8}, "holds"),
        ({"b": 0.8, "c": 0.7}, "holds in part"),
        ({"b": 0.8, "c": "noise"}, "holds in part"),
        ({"b": 0.7, "c": 0.7}, "does not hold"),
        ({"b": 0.7, "c": "noise"}, "does not hold"),
        ({"b": "noise", "c": "noise"}, "undecided"),
    ],
)
def test_where_a_claim_of_several_choices_stands(scores: dict[str, Any], standing: str) -> None:
    """One choice that contradicts it is enough, whatever is undecided beside."""
    rng = random.Random(0)

    def make(choice: str, seed: int) -> Known:
        score = scores.get(choice, 0.8)
        return run(0.8 + 0.05 * (-1) ** seed if score == "noise" else rng.gauss(score, 1e-4))

    analysis = ANALYSES.get("difference")(axis="q", control="a", margin=0.01)
    assert analysis.answer(evidence(labelled(q=["a", "b", "c"]), 6, make)).standing == standing


def test_a_claim_about_the_control_alone_is_refused() -> None:
    analysis = ANALYSES.get("difference")(axis="q", control="a", margin=0.1, claimed=["a"])
    assert list(analysis.flaws(labelled(q=["a", "b"]))) == [
        "the claim is about no choice of q beside the control 'a'"
    ]


def test_sizes_of_a_doubling_are_numbers() -> None:
    analysis = ANALYSES.get("doubling")(axis="q", control="a", size="dim", margin=0.1)
    axes = {"q": {"a": "a", "b": "b"}, "dim": {"small": ["model.dim=8"], "large": ["model.dim=16"]}}
    assert list(analysis.flaws(axes)) == ["the choices of dim should be numbers above 0, and 'small' is none"]


@pytest.mark.parametrize("better", ["min", "max"])
def test_a_gap_that_grows_is_worse_whichever_end_of_the_metric_is_better(better: str) -> None:
    axes = labelled(q=["full", "binary"], dim=[8, 16, 32], epochs=[1, 2, 4])
    rng = random.Random(0)

    def make(q: str, dim: str, epochs: str, seed: int) -> Known:
        loss = 1 / int(dim) + 0.1 * (q == "binary") * math.log2(2 * int(epochs)) + rng.gauss(0, 1e-3)
        score = loss if better == "min" else 1 - loss
        return run(score, better, weights=float(dim) ** 2, steps=100 * int(epochs))

    analysis = ANALYSES.get("scaling")(axis="q", control="full", size="dim", data="epochs", margin=0.01)
    answer = analysis.answer(evidence(axes, 3, make))
    assert answer.findings[1].mean == pytest.approx(0.1, abs=0.01)
    assert (answer.findings[1].word, answer.better) == ("worse", "lower")


def test_trainings_of_one_length_are_no_scaling() -> None:
    axes = labelled(q=["full", "binary"], dim=[8, 16, 32], limit=[1, 2, 4])
    analysis = ANALYSES.get("scaling")(axis="q", control="full", size="dim", data="limit", margin=0.01)
    with pytest.raises(UserError, match="took the same 100 steps"):
        analysis.answer(evidence(axes, 2, lambda q, d, e, s: run(0.5, "min", weights=float(d), steps=100)))


def test_a_setting_that_diverged_is_not_robust() -> None:
    axes = labelled(q=["a", "b"], lr=[1, 2], decay=[0, 1])
    whole = evidence(axes, 2, lambda *place: run(0.8))
    lost = [(("b", "2", "1"), seed) for seed in range(2)]
    runs = {place: dict(seeds) for place, seeds in whole.runs.items()}
    for place, seed in lost:
        del runs[place][seed]
    analysis = ANALYSES.get("robustness")(axis="q", control="a", over=["lr", "decay"], margin=0.1)
    answer = analysis.answer(Evidence(axes, runs, 2, frozenset(lost)))
    assert [row.ours for row in answer.findings] == [{0: 1.0, 1: 1.0}, {0: 0.75, 1: 0.75}]
    assert analysis.answer(Evidence(axes, runs, 2)).standing == "not yet run"
