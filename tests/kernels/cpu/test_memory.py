"""The memory of packed weights: huge pages, copies and pickles."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from bitexp.kernels import KERNELS
from bitexp.kernels.cpu import Cpu, memory
from tests.support.cpu_kernel import case


def test_prepared_weights_are_copied_and_pickled() -> None:
    x, codes, steps, bias = case("int4", 5, 33, 70, True, True)
    kernel = Cpu()
    prepared = kernel.prepare(codes, steps)
    expected = kernel.forward(x, prepared, bias)
    for twin in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert twin.weights.data_ptr() != prepared.weights.data_ptr()
        assert not set(twin.run.args[:2]) & set(prepared.run.args[:2])
        assert torch.equal(kernel.forward(x, twin, bias), expected)
    assert torch.equal(prepared.codes(), codes)


def test_packed_weights_share_huge_pages_and_go_with_the_last_of_them(monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "_arena", [])
    first, second = (memory.copied(torch.full((3, 100), n, dtype=torch.uint8)) for n in (1, 2))
    assert [int(t.sum()) for t in (first, second)] == [300, 600]
    assert second.data_ptr() - first.data_ptr() == 320  # whole cache lines
    assert first.data_ptr() % memory.LINE == 0
    large = memory.copied(torch.zeros(memory.ARENA + memory.HUGE, dtype=torch.uint8))
    assert abs(large.data_ptr() - first.data_ptr()) > memory.ARENA - memory.HUGE


def test_memory_that_was_set_aside_in_inference_mode_serves_outside_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_arena", [])
    with torch.inference_mode():
        memory.copied(torch.zeros(3, 100, dtype=torch.uint8))
    assert int(memory.copied(torch.ones(3, 100, dtype=torch.uint8)).sum()) == 300


def test_a_layer_is_copied_and_pickled_without_the_memory_of_others() -> None:
    prepared = KERNELS.get("cpu").prepare(torch.ones(64, 64, dtype=torch.int8), torch.tensor(0.5))
    assert len(pickle.dumps(prepared)) < 20_000
    x = torch.randn(2, 64)
    again = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(again.forward(x, None, 127, False), prepared.forward(x, None, 127, False))
