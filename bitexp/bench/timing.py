"""Fair times on a shared machine: candidates take turns round by round; the median over the rounds counts.

With one thread it is the CPU time of that thread, which other processes disturb little. With several it is
wall time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]
LEAST = 4e-3
"""Seconds that a candidate works at least in each round."""


def measure(
    candidates: Mapping[str, Sequence[Call]], rounds: int, threads: int = 1, least: float = LEAST
) -> dict[str, float]:
    """Median seconds per call.

    Args:
        candidates: by name the calls to go through in turn; several of the same work on several copies of
            the weights find none of them in the cache.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    counts = {name: count(calls, clock, least) for name, calls in candidates.items()}
    place = dict.fromkeys(candidates, 0)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, calls in candidates.items():
            first, number = place[name], counts[name]
            start = clock()
            for i in range(first, first + number):
                calls[i % len(calls)]()
            seconds[name].append((clock() - start) / number)
            place[name] = (first + number) % len(calls)
    return {name: statistics.median(times) for name, times in seconds.items()}


def count(calls: Sequence[Call], clock: Callable[[], float], least: float) -> int:
    """How many calls take `least` seconds; each is made once before."""
    for call in calls:
        call()
    number = 1
    while True:
        start = clock()
        for i in range(number):
            calls[i % len(calls)]()
        taken = clock() - start
        if taken > least or number >= 1 << 15:
            return max(1, min(number, round(number * least / max(taken, 1e-9))))
        number *= 2
