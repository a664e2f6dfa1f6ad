"""A network whose layers are quantized one at a time: losses, costs and sensitivities as they are by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.allocation.network import Network
from bitexp.allocation.sensitivities import SENSITIVITIES
from bitexp.models import build_model
from bitexp.models.ties import tied_layers
from bitexp.models.torchvision_models import torchvision_model
from bitexp.quant import quantize

BITS = (1.58, 2, 8)


def options(bits: float) -> dict[str, object]:
    return {"weights": {"name": "uniform_mse", "bits": bits}, "activations": "int8"}


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def network(model: nn.Sequential) -> Network:
    twins = [copy.deepcopy(model) for _ in BITS]
    for twin, bits in zip(twins, BITS, strict=True):
        quantize(twin, options(bits))
    batches = [(torch.randn(n, 8), torch.randint(3, (n,))) for n in (20, 20, 5)]
    return Network(model, twins, BITS, lambda batch: F.cross_entropy(model(batch[0]), batch[1]), batches)


def loss_of(model: nn.Module, network: Network) -> float:
    pairs = [(model(x).detach(), y) for x, y in network.batches]
    return float(F.cross_entropy(torch.cat([z for z, _ in pairs]), torch.cat([y for _, y in pairs])))


def test_the_loss_is_that_of_the_quantized_network(network: Network, model: nn.Sequential) -> None:
    mixed = copy.deepcopy(model)
    quantize(mixed, {**options(2), "layers": [{"match": "2", "weights": {"name": "uniform_mse", "bits": 8}}]})
    assert network.loss({0: 1, 1: 2, 2: 1}) == pytest.approx(loss_of(mixed, network), rel=1e-6)
    assert network.loss() == pytest.approx(loss_of(model, network), rel=1e-6)  # and nothing is left of it


def test_the_sensitivities_by_hand(network: Network, model: nn.Sequential) -> None:
    full = network.loss()
    tables = {name: SENSITIVITIES.get(name)()(network) for name in SENSITIVITIES.names()}
    increases = network.table(lambda place, width: network.loss({place: width}) - full)
    assert (tables["loss"] >= increases - 1e-9).all()
    assert tables["loss"][:, 0] == pytest.approx(increases.max(1).clip(0), rel=1e-4)
    assert (np.diff(tables["loss"]) < 0).all()
    weight = network.layers[1].quantized[0].quantized().dequantized()
    distance = float((weight - model[2].weight.detach()).square().sum())
    assert tables["error"][1, 0] == pytest.approx(distance, rel=1e-6)
    assert (np.diff(tables["error"]) < 0).all()
    ratio = tables["trace"] / tables["error"]
    assert ratio[:, 0] == pytest.approx(ratio[:, 2])  # one mean trace for each layer
    worth = -tables["orthogonality"] / np.array(BITS)
    assert worth[:, 0] == pytest.approx(worth[:, 1])
    assert worth[-1, 0] <= 1
    predicted = {name: SENSITIVITIES.get(name)().predicted(tables[name], [0, 1, 2]) for name in tables}
    assert predicted["error"] is predicted["orthogonality"] is None
    assert predicted["trace"] == pytest.approx(sum(tables["trace"].diagonal()) / 2)
    assert predicted["loss"] == pytest.approx(sum(tables["loss"].diagonal()))


def test_a_layer_that_is_passed_by_is_refused(model: nn.Sequential) -> None:
    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x)

    plain = Passing()
    twin = copy.deepcopy(plain)
    quantize(twin, options(2))
    with pytest.raises(ValueError, match="other: the network does not call them"):
        Network(
            plain, [twin], [2], lambda batch: plain(batch[0]).sum(), [(torch.randn(2, 8), torch.zeros(2))]
        )


def test_models_declare_which_layers_go_together() -> None:
    resnet = torchvision_model(shape=(3, 32, 32), classes=3, arch="resnet18", stem="small")
    assert ("layer2.0.conv1", "layer2.0.downsample.0") in tied_layers(resnet)
    assert len(tied_layers(resnet)) == 3  # as in HAWQ-V3
    decoder = build_model("decoder", vocabulary=8, context=8, dim=8, depth=1, heads=2)
    assert [len(group) for group in tied_layers(decoder)] == [3, 2]
