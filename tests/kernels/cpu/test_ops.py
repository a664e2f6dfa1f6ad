"""What the compiled program computes between the layers, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.kernels.cpu.jit import missing
from bitexp.models.decoder import rotate, rotation
from bitexp.quant.norms import normalize

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

from bitexp.kernels.cpu import ops

EMPTY = np.zeros(0, np.float32)
SPECIAL = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 87.0, -87.0, 1e30, -1e30])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def each(function: Any, x: Tensor) -> Tensor:
    """A compiled function of single numbers on all of them."""

    def loop(given: Any, out: Any) -> None:
        for j in range(given.size):
            out[j] = function(given[j])

    out = torch.empty_like(x)
    import numba

    numba.njit(loop)(x.numpy(), out.numpy())
    return out


def test_exp_is_torchs_to_two_units_in_the_last_place() -> None:
    x = torch.linspace(-87, 88, 40001)
    assert ((each(ops.exp, x) - x.exp()).abs() / x.exp()).max() < 2.5e-7
    assert each(ops.exp, torch.tensor([-1e9, -torch.inf])).max() < 1e-37
    assert each(ops.exp, torch.tensor([torch.nan])).isnan().all()


def test_erf_is_torchs() -> None:
    x = torch.linspace(-6, 6, 20001)
    assert (each(ops.erf, x) - x.erf()).abs().max() < 4e-7


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("silu", F.silu),
        ("relu", F.relu),
        ("relu2", lambda x: F.relu(x).square()),
        ("gelu", F.gelu),
    ],
)
def test_activations_are_torchs_and_keep_what_is_no_number(name: str, expected: Any) -> None:
    x = torch.cat([drawn(999) * 4, SPECIAL, torch.tensor([torch.nan])])
    out, kind = torch.empty_like(x), ops.ACTIVATIONS[name]
    ops.activate(kind, x.numpy(), out.numpy())
    torch.testing.assert_close(out, expected(x), rtol=2e-6, atol=2e-6, equal_nan=True)
    if name in ("silu", "relu2"):
        up = drawn(len(x), seed=1)
        ops.gated(kind, x.numpy(), up.numpy(), out.numpy())
        torch.testing.assert_close(out, expected(x) * up, rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("features", [1, 7, 64, 300])
def test_norms_are_torchs(features: int) -> None:
    x, weight, bias = (drawn(features, seed=i) + i for i in range(3))
    out = torch.empty_like(x)
    ops.norm(x.numpy(), True, np.float32(1e-5), weight.numpy(), bias.numpy(), out.numpy())
    torch.testing.assert_close(out, F.layer_norm(x, [features], weight, bias, 1e-5), rtol=1e-5, atol=1e-5)
    ops.norm(x.numpy(), False, np.float32(1e-6), weight.numpy(), EMPTY, out.numpy())
    torch.testing.assert_close(out, F.rms_norm(x, [features], weight, 1e-6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 6, 64])
def test_heads_are_turned_to_the_bit(size: int) -> None:
    x = drawn(3, size)
    turn = rotation(4, 7, size, 10000.0, x)
    out = torch.empty_like(x)
    for row, cos, sin, result in zip(x, *turn, out, strict=True):
        ops.rotated(row.numpy(), cos.numpy(), sin.numpy(), result.numpy())
    assert torch.equal(out, rotate(x, turn))


@pytest.mark.parametrize(("tokens", "size"), [(1, 2), (5, 64), (70, 10), (18, 80)])
def test_attention_is_torchs(tokens: int, size: int) -> None:
    q, k, v = drawn(1, size) * 3, drawn(tokens, size, seed=1), drawn(tokens, size, seed=2)
    out, scores = torch.empty(size), np.empty(tokens, np.float32)
    ops.mixed(q[0].numpy(), k.numpy(), v.numpy(), scores, out.numpy())
    expected = F.scaled_dot_product_attention(q, k, v)[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    ops.mixed_columns(q[0].numpy(), k.t().contiguous().numpy(), v.numpy(), scores, out.numpy())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_products_with_floats_are_torchs() -> None:
    x, w, b = drawn(3, 50), drawn(7, 50, seed=1), drawn(7, seed=2)
    out = torch.empty(3, 7)
    ops.dense(x.numpy(), w.numpy(), b.numpy(), out.numpy())
    torch.testing.assert_close(out, F.linear(x, w, b), rtol=1e-5, atol=1e-5)
    ops.dense(x.numpy(), w.numpy(), EMPTY, out.numpy())
    torch.testing.assert_close(out, F.linear(x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 3.0, -2.0, 3.0],
        [-1.0, -0.5, -3.0],
        [0.0, -0.0, -1e-30],
        [-torch.inf, -torch.inf],
        [torch.inf, 1.0, torch.nan, 2.0],
    ],
)
def test_the_likeliest_is_the_largest_the_first_of_equal_ones(values: list[float]) -> None:
    x = torch.tensor(values * 9)
    assert ops.likeliest(x.numpy()) == int(x.argmax())
    drawn_ones = drawn(1001)
    assert ops.likeliest(drawn_ones.numpy()) == int(drawn_ones.argmax())


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("features", [1, 7, 64, 300])
def test_norms_have_the_bits_of_a_layer_that_takes_them_itself(features: int, norm: Any) -> None:
    x = drawn(features) * 3 + 1
    out = torch.empty_like(x)
    ops.norm(x.numpy(), norm == "layer", np.float32(1e-5), EMPTY, EMPTY, out.numpy())
    assert torch.equal(out, normalize(x, norm, -1)[0])
