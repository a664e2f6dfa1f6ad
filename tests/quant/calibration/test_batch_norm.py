"""Batch norms that are estimated anew, against torch's own function for averaged networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bitexp.quant import quantize
from bitexp.quant.calibration import CALIBRATIONS


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(100, 6), nn.BatchNorm1d(6, affine=False),
    )  # fmt: skip
    quantize(net, {"weights": {"name": "int", "bits": 2}, "activations": "int8"})
    for batch in batches(7):
        net(batch)
    return net


def batches(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(8, 3, 9, 9, generator=generator) + 2 * seed for _ in range(3)]


def test_the_statistics_are_those_of_update_bn(net: nn.Module) -> None:
    theirs, before = copy.deepcopy(net), {name: t.clone() for name, t in net.state_dict().items()}
    update_bn(batches(), theirs)
    CALIBRATIONS.get("bn")()(net, batches())
    assert not any(module.training for module in net.modules())
    assert [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]
    for (name, ours), expected in zip(net.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
        assert torch.equal(ours, before[name]) != ("running" in name) or "num_batches" in name


def test_dropout_is_that_of_evaluation() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    x = torch.rand(16, 4)
    CALIBRATIONS.get("bn")()(net, [x])
    torch.testing.assert_close(net[1].running_mean, x.mean(0))


def test_a_network_without_batch_norms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"calibrate=bn .* has none"):
        CALIBRATIONS.get("bn")().check(nn.Linear(2, 2))


def test_it_can_follow_upon_a_reconstruction(net: nn.Module) -> None:
    twice = copy.deepcopy(net)
    CALIBRATIONS.get("adaround")(iterations=5, batch_norm=True)(net, batches())
    CALIBRATIONS.get("adaround")(iterations=5)(twice, batches())
    update_bn(batches(), twice)
    for ours, theirs in zip(net.state_dict().values(), twice.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
