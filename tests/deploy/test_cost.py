"""Operations, weights and memory, against numbers worked out by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.deploy.cost import body_bits, costs, operations, step_bytes
from bitexp.quant.convert import quantize


class Net(nn.Module):
    """A body of two layers over 5 tokens, attention between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x))
        x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return self.head(self.drop(self.norm(x)).mean(1))


BODY = ["one", "two"]
MACS = 5 * (8 * 16 + 16 * 8)
REST = 2 * 5 * 5 * 8 + 8 * 3  # attention: queries by keys and weights by values; then the head


def test_in_full_precision_a_multiplication_and_an_addition_each() -> None:
    found = operations(Net().eval(), torch.randn(1, 5, 8), BODY)
    assert found == {
        "fp32_add": MACS + REST, "fp32_mul": MACS + REST, "int8_add": 0, "int8_mul": 0,
        "body_macs": MACS, "total_macs": MACS + REST,
    }  # fmt: skip


@pytest.mark.parametrize("preset", ["binary", "ternary_mean", "ternary_median", "reloaded"])
def test_low_bit_layers_add_int8_and_multiply_once_per_input_and_output(
    preset: str, make_quantizer: Any
) -> None:
    model = Net().eval()
    quantize(model, make_quantizer(preset), ["*"], ["head"])
    found = operations(model, torch.randn(1, 5, 8), BODY)
    assert (found["int8_add"], found["int8_mul"]) == (MACS, 0)
    assert found["fp32_add"] == REST
    assert found["fp32_mul"] == REST + 5 * (8 + 16) + 5 * (16 + 8)
    assert found["total_macs"] == MACS + REST


@pytest.mark.parametrize(
    (
        "preset",
        "added",
        "multiplied",
    ),  # int8 additions, and fp32 multiplications beside those of ternary_mean
    [
        ("sherry", MACS * 3 / 4, 0),
        ("sparse_ternary", MACS * 6 / 8, 0),
        ("tequila", MACS, 0),
        ("ttq", MACS, 5 * (16 + 8)),
        ("dlt", MACS + 5 * (8 + 16), 5 * (16 + 8)),
    ],
)
def test_zeros_by_rule_cost_nothing_planes_and_shifts_their_own(
    preset: str, added: float, multiplied: int, make_quantizer: Any
) -> None:
    model = Net().eval()
    quantize(model, make_quantizer(preset), ["*"], ["head"])
    found = operations(model, torch.randn(1, 5, 8), BODY)
    assert (found["int8_add"], found["int8_mul"]) == (added, 0)
    assert found["fp32_mul"] == REST + 5 * (8 + 16) + 5 * (16 + 8) + multiplied
    assert found["total_macs"] == MACS + REST


def test_float_activations_need_float_additions(make_quantizer: Any) -> None:
    model = Net().eval()
    quantize(model, make_quantizer("ternary_mean", activations="none"), ["*"], ["head"])
    found = operations(model, torch.randn(1, 5, 8), BODY)
    assert (found["int8_add"], found["fp32_add"]) == (0, MACS + REST)
    assert found["fp32_mul"] == REST + 5 * (16 + 8)


def test_convolutions_count_each_position() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False))
    found = operations(model, torch.randn(2, 3, 4, 5), ["0"])
    assert found["body_macs"] == found["total_macs"] == 2 * 6 * 4 * 5 * 9


def test_counts_are_for_each_token_and_weights_are_counted() -> None:
    found = costs(Net().eval(), torch.randn(1, 5, 8), BODY, 5, 64)
    assert found["cost/total_macs"] == (MACS + REST) / 5
    assert found["size/body_weights"] == 2 * 128
    assert found["size/total_weights"] == sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize(
    ("preset", "changes", "weight", "activation"),
    [
        ("full", {}, 32, 32),
        ("bireal", {}, 1, 1),
        ("sherry", {}, 1.25, 8),
        ("ternary_int4", {}, math.log2(3), 4),
        ("paretoq_2bit", {}, 2, 32),
        (
            "lsq",
            {"layers": [{"match": "one", "weights": "none", "activations": "none"}]},
            (4 + 32) / 2,
            (8 + 32) / 2,
        ),
    ],
)
def test_bits_are_those_of_the_codes_as_means_over_the_weights(
    preset: str, changes: dict[str, Any], weight: float, activation: float, make_quantizer: Any
) -> None:
    model = Net().eval()
    quantize(model, make_quantizer(preset, **changes), ["*"], ["head"])
    found = body_bits(model, BODY)
    assert found == {"size/weight_bits": pytest.approx(weight), "size/activation_bits": activation}


def test_memory_grows_with_the_batch_by_what_a_sample_adds() -> None:
    """Of y = relu(x W) autograd keeps x for the weight and y for the relu: 8 and 16 floats a sample."""
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU())
    assert step_bytes(model, torch.randn(1, 8), 64) == 64 * (8 + 16) * 4
    assert step_bytes(model, torch.randn(1, 8), 2) == 2 * (8 + 16) * 4


def test_the_model_is_left_as_it_was() -> None:
    model = Net().eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    step_bytes(model, torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)), 16)
    assert torch.equal(torch.rand(2), expected)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_records_what_it_costs(train: Any) -> None:
    """The default network, 64 -> 16 -> 10 with an int8 body where the quantizer has one."""
    full, binary = (train(f"quantizer={name}").result["metrics"] for name in ("full", "binary"))
    assert full["cost/int8_add"] == 0
    assert binary["cost/int8_add"] == binary["cost/body_macs"] == full["cost/body_macs"] > 0
    assert binary["cost/total_macs"] == full["cost/total_macs"]
    assert binary["size/body_bytes"] < full["size/body_bytes"] == 4 * full["size/body_weights"]
