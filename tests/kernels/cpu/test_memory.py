"""The memory of packed weights: huge pages, copies and pickles."""

from __future__ import annotations

import copy
import pickle
import weakref

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


@pytest.fixture
def arenas(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[memory.Arena]:
    """Where memory is taken from in this test, empty at first."""
    fresh: weakref.WeakSet[memory.Arena] = weakref.WeakSet()
    monkeypatch.setattr(memory, "_arenas", fresh)
    return fresh


def test_packed_weights_share_huge_pages(arenas: weakref.WeakSet[memory.Arena]) -> None:
    first, second = (memory.copied(torch.full((3, 100), n, dtype=torch.uint8)) for n in (1, 2))
    assert [int(t.sum()) for t in (first, second)] == [300, 600]
    assert second.data_ptr() - first.data_ptr() == 320  # whole cache lines
    assert first.data_ptr() % memory.LINE == 0
    large = memory.copied(torch.zeros(memory.ARENA + memory.HUGE, dtype=torch.uint8))
    assert abs(large.data_ptr() - first.data_ptr()) > memory.ARENA - memory.HUGE


def test_memory_of_dead_weights_is_used_again_and_goes_with_the_last_of_them(
    arenas: weakref.WeakSet[memory.Arena],
) -> None:
    """A model that is loaded again and again beside one that stays, as a server does."""
    size = memory.ARENA // 3 // memory.LINE * memory.LINE
    model = kept = None
    for number in range(20):
        model = memory.copied(torch.zeros(size, dtype=torch.uint8))
        if number % 5 == 0:
            kept = memory.copied(torch.full((100,), number, dtype=torch.uint8)), kept
    assert len(arenas) == 1
    (arena,) = arenas
    assert len(arena.free) + len(arena.returned) < 12
    view = model[7:]
    del model
    memory.copied(torch.ones(2 * size, dtype=torch.uint8))
    assert int(view.sum()) == 0  # what is left of a weight keeps its memory
    del kept, view, arena
    assert len(arenas) == 0


def test_memory_that_was_set_aside_in_inference_mode_serves_outside_of_it(
    arenas: weakref.WeakSet[memory.Arena],
) -> None:
    with torch.inference_mode():
        first = memory.copied(torch.zeros(3, 100, dtype=torch.uint8))
    assert int(first.sum()) == 0
    assert int(memory.copied(torch.ones(3, 100, dtype=torch.uint8)).sum()) == 300


def test_a_layer_is_copied_and_pickled_without_the_memory_of_others() -> None:
    prepared = KERNELS.get("cpu").prepare(torch.ones(64, 64, dtype=torch.int8), torch.tensor(0.5))
    assert len(pickle.dumps(prepared)) < 20_000
    x = torch.randn(2, 64)
    again = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(again.forward(x, None, 127, False), prepared.forward(x, None, 127, False))
