"""Learning rate, weight decay and lambda: pure functions of the step, at their ends and in between."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from bitexp.config.optimization import Adam, Constant, Cosine, TwoStage
from bitexp.config.schema import LambdaSchedule
from bitexp.quant.convert import quantize
from bitexp.train.optimizers import build_optimizer
from bitexp.train.rates import lambda_at, lr_factor, switch_step, weight_decay_at
from bitexp.train.schedule import Schedule
from tests.support.quantizers import MakeQuantizer

SHARES = st.floats(0, 1)
TOTALS = st.integers(1, 300)

COSINES = st.builds(Cosine, name=st.just("cosine"), warmup=SHARES, final=SHARES)
CONSTANTS = st.builds(Constant, name=st.just("constant"), warmup=SHARES)
TWO_STAGES = st.builds(
    TwoStage,
    name=st.just("two_stage"),
    warmup=SHARES,
    switch_at=SHARES,
    second_peak=SHARES,
    second_weight_decay=st.floats(0, 1),
)
SCHEDULES = st.one_of(COSINES, CONSTANTS, TWO_STAGES)


@given(settings=SCHEDULES, total=TOTALS)
def test_the_learning_rate_stays_between_nothing_and_its_peak(
    settings: Cosine | Constant | TwoStage, total: int
) -> None:
    factors = [lr_factor(settings, step, total) for step in range(total + 1)]
    assert all(0 <= factor <= 1 for factor in factors)


@given(settings=SCHEDULES, total=TOTALS)
def test_the_learning_rate_rises_to_its_peak_in_the_warm_up_and_never_after(
    settings: Cosine | Constant | TwoStage, total: int
) -> None:
    warmup = round(settings.warmup * total)
    factors = [lr_factor(settings, step, total) for step in range(total + 1)]
    for step, (now, then) in enumerate(pairwise(factors)):
        if step + 1 < warmup:
            assert then == pytest.approx(now + 1 / warmup)
        elif step >= warmup:
            assert then <= now
    if warmup:
        assert factors[0] == pytest.approx(1 / warmup)
        assert factors[warmup - 1] == 1


@given(settings=COSINES, total=TOTALS)
def test_a_cosine_starts_at_the_peak_ends_at_its_final_share_and_is_halfway_between(
    settings: Cosine, total: int
) -> None:
    warmup = round(settings.warmup * total)
    assume(warmup < total)
    assert lr_factor(settings, warmup, total) == 1
    assert lr_factor(settings, total, total) == pytest.approx(settings.final)
    if (total - warmup) % 2 == 0:
        middle = lr_factor(settings, (total + warmup) // 2, total)
        assert middle == pytest.approx((1 + settings.final) / 2)


@given(settings=CONSTANTS, total=TOTALS)
def test_a_constant_rate_stays_at_its_peak(settings: Constant, total: int) -> None:
    warmup = round(settings.warmup * total)
    assert all(lr_factor(settings, step, total) == 1 for step in range(warmup, total + 1))


def test_two_stages_decay_linearly_and_the_peak_is_cut_at_the_switch() -> None:
    settings = TwoStage(
        name="two_stage", warmup=0.1, switch_at=0.5, second_peak=0.6, second_weight_decay=0.02
    )
    factors = [lr_factor(settings, step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:50] == pytest.approx([1 - (step - 10) / 90 for step in range(10, 50)])
    assert factors[50:] == pytest.approx([0.6 * (1 - (step - 10) / 90) for step in range(50, 101)])
    assert factors[100] == 0


@given(settings=SCHEDULES, base=st.floats(0, 1), total=TOTALS)
def test_weight_decay_changes_only_at_the_switch_of_two_stages(
    settings: Cosine | Constant | TwoStage, base: float, total: int
) -> None:
    for step in range(total):
        second = isinstance(settings, TwoStage) and step >= settings.switch_at * total
        expected = settings.second_weight_decay if second else base  # type: ignore[union-attr]
        assert weight_decay_at(settings, base, step, total) == expected


LAMBDAS = st.builds(
    LambdaSchedule,
    name=st.sampled_from(["constant", "linear", "sigmoid", "step"]),
    start=SHARES,
    end=SHARES,
).filter(lambda schedule: schedule.start <= schedule.end)


@given(schedule=LAMBDAS, total=TOTALS)
def test_lambda_rises_from_0_before_the_start_to_1_from_the_end_on(
    schedule: LambdaSchedule, total: int
) -> None:
    values = [lambda_at(schedule, step, total) for step in range(total + 1)]
    assert all(0 <= value <= 1 for value in values)
    assert all(now <= then for now, then in pairwise(values))
    for step, value in enumerate(values):
        share = step / total
        if share >= schedule.end or schedule.name == "constant":
            assert value == 1
        elif share < schedule.start or schedule.name == "step":
            assert value == 0
        elif share < schedule.end - 1e-9:
            assert value < 1
    assert values[-1] == 1


@pytest.mark.parametrize("name", ["linear", "sigmoid"])
def test_lambda_is_exactly_0_at_the_start_and_one_half_in_the_middle(name: str) -> None:
    schedule = LambdaSchedule(name=name, start=0.2, end=0.8)  # type: ignore[arg-type]
    values = [lambda_at(schedule, step, 100) for step in range(101)]
    assert values[:21] == [0] * 21
    assert values[50] == pytest.approx(0.5)
    assert values[80:] == [1] * 21
    for step in range(101):
        assert values[step] + values[100 - step] == pytest.approx(1)


def test_a_linear_lambda_is_the_share_that_has_passed() -> None:
    schedule = LambdaSchedule(name="linear", start=0.0, end=0.5)
    assert [lambda_at(schedule, step, 8) for step in range(9)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_a_sigmoid_is_the_logistic_curve_of_steepness_10_stretched_to_its_ends() -> None:
    schedule = LambdaSchedule(name="sigmoid", start=0.0, end=1.0)

    def logistic(t: float) -> float:
        return 1 / (1 + math.exp(-10 * (t - 0.5)))

    for step in range(100):
        stretched = (logistic(step / 100) - logistic(0)) / (logistic(1) - logistic(0))
        assert lambda_at(schedule, step, 100) == pytest.approx(stretched, abs=1e-12)


def test_without_a_schedule_lambda_is_1() -> None:
    assert lambda_at(None, 0, 10) == 1


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_epoch_start"])
@pytest.mark.parametrize("step", [0, 3, 6, 8])
def test_the_callback_sets_what_the_functions_say(
    make_quantizer: MakeQuantizer, step: int, hook: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    quantize(model, make_quantizer("ternary_mean"), ["*"], [])
    adam = Adam(
        name="adamw", lr=0.1, weight_decay=0.3, betas=[0.9, 0.99], eps=1e-8, stochastic_rounding=False
    )
    scheduler = TwoStage(
        name="two_stage", warmup=0.25, switch_at=0.5, second_peak=0.6, second_weight_decay=0.0
    )
    phases = LambdaSchedule(name="linear", start=0.0, end=0.75)
    optimizer = build_optimizer(model, adam)
    trainer: Any = SimpleNamespace(global_step=step, estimated_stepping_batches=8.0, optimizers=[optimizer])
    callback: Any = Schedule(scheduler, adam, phases)
    if hook == "on_train_batch_start":
        callback.on_train_batch_start(trainer, model, None, 0)
        rate = 0.1 * lr_factor(scheduler, step, 8)
        assert callback.lr == rate
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        decays = {group["decays"]: group["weight_decay"] for group in optimizer.param_groups}
        assert decays == {True: 0.3 if step < 4 else 0.0, False: 0.0}
    else:
        callback.on_validation_epoch_start(trainer, model)
    assert model[0].mix == torch.tensor(lambda_at(phases, step, 8))
    assert model[0].phasing == (step < 6)


@pytest.mark.parametrize(("name", "begins"), [("step", 6), ("linear", 3), ("sigmoid", 3), ("constant", 0)])
def test_the_switch_is_the_first_step_that_is_quantized(name: str, begins: int) -> None:
    schedule = LambdaSchedule(name=name, start=0.25, end=0.75)  # type: ignore[arg-type]
    assert switch_step(schedule, 8) == begins


@pytest.mark.parametrize("reset", [False, True])
def test_the_optimizer_forgets_at_the_switch_and_only_there(
    make_quantizer: MakeQuantizer, reset: bool
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    quantize(model, make_quantizer("ternary_mean"), ["*"], [])
    adam = Adam(
        name="adamw", lr=0.1, weight_decay=0.0, betas=[0.9, 0.99], eps=1e-8, stochastic_rounding=False
    )
    optimizer = build_optimizer(model, adam)
    phases = LambdaSchedule(name="step", start=0.0, end=0.5, reset_optimizer=reset)
    callback: Any = Schedule(Constant(name="constant", warmup=0.0), adam, phases)
    counts = []
    for step in range(8):
        trainer: Any = SimpleNamespace(
            global_step=step, estimated_stepping_batches=8.0, optimizers=[optimizer]
        )
        callback.on_train_batch_start(trainer, model, None, 0)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        counts.append(int(optimizer.state[model[0].weight]["step"]))
    assert counts == ([1, 2, 3, 4, 1, 2, 3, 4] if reset else [1, 2, 3, 4, 5, 6, 7, 8])
