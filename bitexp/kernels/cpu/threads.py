"""A product over several threads: plain Python threads, since compiled functions run without the global lock.

There are as many as torch may use (`torch.get_num_threads`). They start at the first product that is worth
it, and anew in a forked process; none of them ever waits for another.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import torch

WORTH = 2**26
"""Products of codes below which waking a thread (some 50 us) costs more than it saves."""
FEW = 64
"""Tokens per thread from which they are shared out; below that the outputs are."""

_pool: list[ThreadPoolExecutor] = []
_own = threading.local()


def pool(threads: int) -> ThreadPoolExecutor:
    """The threads of this process beside the calling one."""
    if not _pool or _pool[0]._max_workers < threads - 1:
        _pool[:] = [ThreadPoolExecutor(threads - 1, "bitexp")]
    return _pool[0]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.clear)  # threads do not survive a fork


def scratch(size: int) -> int:
    """The address of memory of the calling thread; it stays, since fresh pages cost more than the layer."""
    if getattr(_own, "size", 0) < size:
        _own.memory, _own.size = torch.empty(size, dtype=torch.uint8), size
        _own.address = _own.memory.data_ptr()
    address: int = _own.address
    return address


def with_scratch(
    run: Callable[..., None], given: tuple[int, ...], size: int, ranges: tuple[int, ...], alive: object
) -> None:
    """Calls `run` with scratch memory of the thread that this runs in."""
    run(*given, scratch(size), *ranges)


def together(threads: int, jobs: list[Callable[[], None]]) -> None:
    """Calls all jobs, the first in this thread, and returns or raises only when none of them runs any more.

    An exception here, such as Ctrl-C, would otherwise free memory that the others are still writing into.
    What such memory belongs to is also held by the jobs themselves, for whatever waiting cannot help.
    """
    waiting: list[Future[None]] = []
    try:
        waiting.extend(pool(threads).submit(job) for job in jobs[1:])
        jobs[0]()
    finally:
        settle(waiting)
    for future in waiting:
        future.result()


def settle(futures: list[Future[None]]) -> None:
    """Waits until all are done. What is raised meanwhile is raised then."""
    raised: BaseException | None = None
    for future in futures:
        while not future.done():
            try:
                wait([future])
            except BaseException as error:
                raised = error
    if raised is not None:
        raise raised


def in_threads(
    run: Callable[..., None], given: tuple[int, ...], size: int, tokens: int, streams: int, *alive: object
) -> None:
    """Calls `run(*given, scratch, token, tokens, stream, streams)` for ranges that make up all of them.

    Each call has `size` bytes of scratch memory by itself, and holds `alive`, whose addresses are given.
    """
    threads = torch.get_num_threads()
    if tokens >= FEW * threads:
        parts = [(a, b, 0, streams) for a, b in shares(tokens, threads)]
    else:
        parts = [(0, tokens, a, b) for a, b in shares(streams, threads)]
    together(threads, [partial(with_scratch, run, given, size, part, alive) for part in parts])


def shares(count: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of nearly equal length that make up `range(count)`; none is empty."""
    bounds = [count * n // threads for n in range(threads + 1)]
    return [(a, b) for a, b in itertools.pairwise(bounds) if a < b]
