"""Stochastic depth and RegNets by formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitexp.models import build_model
from bitexp.models.stochastic_depth import dropped, rising

SMALL = {"shape": (1, 8, 8), "classes": 4, "patch": 4, "dim": 8, "depth": 3, "heads": 2}


def test_rates_rise_from_nothing_to_the_last() -> None:
    assert list(rising(0.3, 4)) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert list(rising(0.3, 1)) == [0.0]


def test_whole_samples_are_dropped_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    kept = dropped(torch.ones(20_000, 3), 0.25)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert bool((kept == kept[:, :1]).all())
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)


def test_a_vit_drops_in_training_alone() -> None:
    torch.manual_seed(0)
    plain, deep = build_model("vit", **SMALL), build_model("vit", **SMALL, stochastic_depth=0.9)
    deep.load_state_dict(plain.state_dict())
    x = torch.randn(16, 1, 8, 8)
    assert torch.equal(plain.eval()(x), deep.eval()(x))
    first, second = (deep.train()(x) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(plain.train()(x), plain(x))


@pytest.mark.parametrize(
    ("model", "end"), [("resnet18", "layer4.1.bn2"), ("regnet_x_400mf", "trunk_output.block4.block4-11.f")]
)
def test_the_last_branch_of_torchvision_is_dropped_most(model: str, end: str) -> None:
    network = build_model(model, shape=(1, 16, 16), classes=4, stochastic_depth=0.5)
    branch: nn.Module = network.get_submodule(end)
    seen: list[torch.Tensor] = []
    branch.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    torch.manual_seed(0)
    network(torch.randn(40, 1, 16, 16))
    gone = (seen[0].flatten(1) == 0).all(1)
    assert 8 <= int(gone.sum()) <= 32


def test_other_architectures_and_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="resnet, resnext and regnet"):
        build_model("convnext_tiny", shape=(3, 32, 32), classes=4, stochastic_depth=0.1)
    with pytest.raises(ValueError, match="below 1"):
        build_model("vit", **SMALL, stochastic_depth=1.0)


def test_the_formula_gives_the_published_widths() -> None:
    """RegNetX-200MF (arXiv 2003.13678, figure 15)."""
    network = build_model("regnet", shape=(3, 32, 32), classes=10)
    stages = list(network.trunk_output.children())
    assert [len(stage) for stage in stages] == [1, 1, 4, 7]
    assert [stage[-1].f.c[0].out_channels for stage in stages] == [24, 56, 152, 368]
