"""Medians of interleaved calls."""

from __future__ import annotations

import pytest

from bitexp.bench import timing


def test_candidates_take_turns_and_go_through_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "thread_time", lambda: now[0])

    def call(name: str, seconds: float) -> timing.Call:
        def work() -> None:
            now[0] += seconds
            calls.append(name)

        return work

    candidates = {"a": [call("a0", 2.0), call("a1", 4.0)], "b": [call("b", 1.0)]}
    found = timing.measure(candidates, rounds=4, least=0.5)
    assert found == {"a": 3.0, "b": 1.0}
    assert calls[-8:] == ["a0", "b", "a1", "b", "a0", "b", "a1", "b"]


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 1), (0.002, 5)])
def test_a_short_call_is_made_often_enough(seconds: float, expected: int) -> None:
    now = [0.0]

    def work() -> None:
        now[0] += seconds

    number = timing.count([work], lambda: now[0], 0.01)
    assert number * seconds >= 0.01 * 0.99
    assert number >= expected
