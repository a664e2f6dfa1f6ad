"""The choice of a kernel: `auto` takes the fastest that runs here, a name insists."""

from __future__ import annotations

import pytest

from bitexp.kernels import KERNELS, choose_kernel
from bitexp.kernels.reference import Reference
from bitexp.kernels.registry import PREFERENCE


class Absent(Reference):
    """A kernel that runs nowhere."""

    def unavailable(self, device: str) -> str | None:
        return f"no such chip beside {device}"


def test_auto_prefers_among_registered_kernels_and_ends_with_the_reference() -> None:
    assert set(PREFERENCE) <= set(KERNELS.names())
    assert PREFERENCE[-1] == "reference"


def test_auto_takes_the_first_that_runs_here() -> None:
    kernel, name, reason = choose_kernel("auto", "cpu")
    first = next(name for name in PREFERENCE if KERNELS.get(name).unavailable("cpu") is None)
    assert name == first
    assert kernel is KERNELS.get(first)
    assert reason.startswith("auto: the fastest that runs here")


def test_auto_says_why_faster_ones_were_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS._entries, PREFERENCE[0], Absent())
    _, name, reason = choose_kernel("auto", "cpu")
    assert name != PREFERENCE[0]
    assert f"{PREFERENCE[0]}: no such chip beside cpu" in reason


def test_where_nothing_runs_auto_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PREFERENCE:
        monkeypatch.setitem(KERNELS._entries, name, Absent())
    with pytest.raises(ValueError, match=r"no kernel runs here: .*reference: no such chip"):
        choose_kernel("auto", "cpu")


@pytest.mark.parametrize("name", KERNELS.names())
def test_a_name_insists_or_fails_with_the_reason(name: str) -> None:
    for device in ("cpu", "cuda"):
        if reason := KERNELS.get(name).unavailable(device):
            with pytest.raises(ValueError, match=f"kernel={name} cannot run here") as refused:
                choose_kernel(name, device)
            assert reason in str(refused.value)
        else:
            assert choose_kernel(name, device) == (KERNELS.get(name), name, "asked for")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown kernel 'int_8'.*'int8'.*Known:.*reference"):
        choose_kernel("int_8", "cpu")
