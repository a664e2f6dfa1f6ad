"""What is said about codes: zeros, flips and steps, by layer and over the body."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
from torch import nn

from bitexp.quant.convert import quantize
from bitexp.train.diagnostics import Diagnostics


class Recorder:
    """Stands in for a trainer and its logger."""

    sanity_checking = False
    is_global_zero = True
    current_epoch, global_step = 0, 5

    def __init__(self) -> None:
        self.loggers = [self]
        self.values: dict[str, float] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        assert step == 5
        self.values = values


@pytest.fixture
def module(make_quantizer: Any) -> nn.Module:
    """Two ternary layers with known codes."""
    task = nn.Module()
    task.model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False))
    with torch.no_grad():
        task.model[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.1, 0.0], [1.0, 1.0, -1.0, 0.1]]))
        task.model[1].weight.fill_(2.0)
    quantize(task.model, make_quantizer("ternary_mean"), ["*"], [])
    return task


def test_shares_by_layer_and_over_the_body(module: Any) -> None:
    trainer: Any = Recorder()
    diagnostics = Diagnostics()
    diagnostics.on_fit_start(trainer, module)
    with torch.no_grad():
        module.model[0].weight[0, 0] = -1.0  # one of eight codes flips, the step stays
        module.model[1].weight.mul_(3.0)  # no code flips, the step trebles
    diagnostics.on_validation_epoch_end(trainer, module)
    step = (1 + 1 + 0.1 + 1 + 1 + 1 + 0.1) / 8
    tails = scipy.stats.kurtosis(module.model[0].weight.detach().numpy(), None, fisher=False)
    expected = {
        "quant/zero_fraction/0": 3 / 8,
        "quant/flip_rate/0": 1 / 8,
        "quant/scale/0": step,
        "quant/zero_fraction/1": 0.0,
        "quant/flip_rate/1": 0.0,
        "quant/scale/1": 6.0,
        "quant/kurtosis/0": tails,
        "quant/kurtosis/1": 0.0,  # all weights are the same
        "quant/kurtosis": tails * 8 / 20,
        "quant/zero_fraction": 3 / 20,
        "quant/flip_rate": 1 / 20,
        "quant/scale_drift": (1 + 3) / 2,
        "epoch": 0,
    }
    assert trainer.values == pytest.approx(expected)
    diagnostics.on_validation_epoch_end(trainer, module)
    assert trainer.values["quant/flip_rate"] == 0.0


def test_a_resumed_run_counts_from_the_same_codes(module: Any) -> None:
    trainer: Any = Recorder()
    before, after = Diagnostics(), Diagnostics()
    before.on_fit_start(trainer, module)
    with torch.no_grad():
        module.model[1].weight[0].neg_()
    after.load_state_dict(before.state_dict())
    after.on_fit_start(trainer, module)
    after.on_validation_epoch_end(trainer, module)
    assert trainer.values["quant/flip_rate/1"] == 2 / 12


def test_other_ranks_and_sanity_checks_say_nothing(module: Any) -> None:
    for attribute, value in (("is_global_zero", False), ("sanity_checking", True)):
        trainer: Any = Recorder()
        setattr(trainer, attribute, value)
        diagnostics = Diagnostics()
        diagnostics.on_fit_start(trainer, module)
        diagnostics.on_validation_epoch_end(trainer, module)
        assert trainer.values == {}
