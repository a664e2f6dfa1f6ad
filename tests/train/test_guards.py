"""What stops a run: a loss that is no number, and signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from bitexp.common.errors import Diverged, Stopped
from bitexp.train.guards import FiniteLoss, Signals


def trainer(**facts: Any) -> Any:
    return SimpleNamespace(**{"world_size": 1, "global_step": 7, **facts})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_loss_that_is_no_number_ends_the_run(value: float, wrapped: bool) -> None:
    loss = torch.tensor(value)
    with pytest.raises(Diverged, match=rf"the training loss is {value} at step 7"):
        FiniteLoss(50).on_train_batch_end(trainer(), None, {"loss": loss} if wrapped else loss, None, 3)


def test_a_finite_loss_does_not() -> None:
    FiniteLoss(1).on_train_batch_end(trainer(), None, {"loss": torch.tensor(1e38)}, None, 0)


def test_elsewhere_than_on_the_cpu_it_looks_now_and_then() -> None:
    loss = SimpleNamespace(device=torch.device("cuda"), item=None)
    FiniteLoss(50).on_train_batch_end(trainer(), None, {"loss": loss}, None, 49)


@pytest.mark.parametrize("mine", [0.0, float("nan")])
def test_all_ranks_stop_or_none(mine: float) -> None:
    asked: list[bool] = []

    def reduce(decision: bool, all: bool) -> bool:
        asked.append(decision)
        assert not all
        return True  # another rank's loss is no number

    several = trainer(world_size=2, strategy=SimpleNamespace(reduce_boolean_decision=reduce))
    with pytest.raises(Diverged):
        FiniteLoss(1).on_train_batch_end(several, None, {"loss": torch.tensor(mine)}, None, 0)
    assert asked == [mine != 0.0]


@pytest.mark.parametrize("number", Signals.KINDS)
def test_a_signal_is_noted_and_the_handlers_come_back(number: int) -> None:
    before = [signal.getsignal(kind) for kind in Signals.KINDS]
    with Signals() as signals:
        signals.check()
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(Stopped, match=signal.Signals(number).name) as stop:
            signals.check()
        assert stop.value.signum == number
    assert [signal.getsignal(kind) for kind in Signals.KINDS] == before


def test_a_sigterm_sent_twice_at_once_is_one() -> None:
    with Signals() as signals:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process(number: int, start: Any) -> None:
    def work() -> None:
        Signals.ECHO = -1.0
        with Signals():
            os.kill(os.getpid(), signal.SIGTERM)
            sys.stdout.write("still here\n")
            sys.stdout.flush()
            os.kill(os.getpid(), number)

    ended = start(work).wait()
    assert (ended.code, ended.out) == (-number, "still here\n")


def test_the_warning_before_a_time_limit_is_no_first_signal() -> None:
    with Signals() as signals:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signals.received == signal.SIGTERM


def test_under_nohup_a_terminal_may_close() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_can_be_put_back_in_place() -> None:
    with Signals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals.catch()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_what_lightning_caught_counts_as_well() -> None:
    with pytest.raises(Stopped, match="SIGTERM"), Signals():
        raise SIGTERMException


def test_outside_of_the_main_thread_nothing_is_caught() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def work() -> None:
        with Signals() as signals:
            signals.catch()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
