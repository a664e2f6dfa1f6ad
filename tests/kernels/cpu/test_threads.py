"""The threads of the compiled kernel: they share the work, change no bit, and survive errors and forks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.kernels.cpu import Cpu, threads
from bitexp.kernels.cpu.dots import supported
from bitexp.quant.product import Quantized
from tests.support.cpu_kernel import REFERENCE, assert_same, case


@pytest.fixture
def three_threads() -> Iterator[None]:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("tokens", [1, 5, 700])
def test_several_threads_give_the_same_bits(
    tokens: int, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "WORTH", 0)
    x, codes, steps, bias = case("ternary", tokens, 300, 330, True, True)
    assert_same(supported()[0], x, codes, steps, bias)


def test_a_small_product_wakes_no_thread(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "pool", lambda count: pytest.fail("it asks for threads"))
    x, codes, steps, bias = case("ternary", 8, 64, 64, True, True)
    assert_same(supported()[0], x, codes, steps, bias)


def test_calls_from_several_threads_at_once(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORTH", 0)
    kernel = Cpu()
    x, codes, steps, bias = case("binary", 400, 100, 200, False, True)
    prepared = kernel.prepare(codes, steps)
    expected = REFERENCE.forward(x, Quantized(codes, steps), bias)
    same: list[bool] = []

    def work() -> None:
        same.extend(torch.equal(kernel.forward(x, prepared, bias), expected) for _ in range(20))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert same == [True] * 80


def test_an_error_in_a_thread_is_raised(three_threads: None) -> None:
    def fails(*ranges: int) -> None:
        if ranges[3]:
            raise ArithmeticError(f"{ranges}")

    with pytest.raises(ArithmeticError):
        threads.in_threads(fails, (), 1, 1, 3)


@pytest.mark.parametrize("times", [1, 3])
def test_an_interruption_waits_for_the_threads_that_write(three_threads: None, times: int) -> None:
    writing, ended = threading.Semaphore(0), list[int]()

    def run(scratch: int, first: int, last: int, stream: int, streams: int) -> None:
        if stream:
            writing.release()
            time.sleep(0.3)
            ended.append(stream)
            return
        for _ in range(2):
            writing.acquire()
        for n in range(times - 1):
            threading.Timer(0.05 * (n + 1), signal.raise_signal, [signal.SIGINT]).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.in_threads(run, (), 1, 1, 3)
    assert sorted(ended) == [1, 2]


@given(count=st.integers(0, 50), among=st.integers(1, 9))
def test_shares_make_up_the_whole(count: int, among: int) -> None:
    found = threads.shares(count, among)
    assert [n for a, b in found for n in range(a, b)] == list(range(count))
    assert len(found) == min(count, among)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_its_own_threads(
    start: Callable[..., Any], three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "WORTH", 0)
    x, codes, steps, bias = case("ternary", 5, 100, 200, True, True)
    kernel = Cpu()
    prepared = kernel.prepare(codes, steps)
    expected = kernel.forward(x, prepared, bias)
    assert any(thread.name.startswith("bitexp") for thread in threading.enumerate())

    def work() -> int:  # torch's own threads would hang in a fork, so it compares without them
        return kernel.forward(x, prepared, bias).tolist() != expected.tolist()

    ended = start(work).wait()
    assert ended.code == 0, ended.err
