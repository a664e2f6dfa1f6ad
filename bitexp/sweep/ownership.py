"""Who works on a trial, and whether that process is still there."""

from __future__ import annotations

import functools
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OWNER, SEEN = "owner", "seen"


@functools.cache
def machine() -> str:
    """This machine, boot and process namespace: within it, a process id says who is alive."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()[:8],
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:  # not Linux
            parts.append("")
    return "/".join(parts)


def began(pid: int) -> str | None:
    """When a living process began, in ticks since boot; None where there is none (or only its corpse)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def myself() -> str:
    """This process, as the user attribute `owner` of a trial."""
    return json.dumps({"machine": machine(), "pid": os.getpid(), "began": began(os.getpid())})


class Silences:
    """For how long the owners of trials have given no sign of life, as far as this process has looked.

    A sign is a value that has changed since the last look: what two machines' clocks say is never compared.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[int, tuple[Any, float]] = {}

    def __call__(self, number: int, sign: Any) -> float:
        """Seconds since the sign of a trial changed, or since the first look at it."""
        now = self._clock()
        last, since = self._heard.setdefault(number, (sign, now))
        if last != sign:
            self._heard[number], since = (sign, now), now
        return now - since


def gone(attributes: Mapping[str, Any], silence: float, lost_after: float) -> bool:
    """Whether the owner of a running trial works no more: its process has ended, or it is long unheard of.

    Args:
        attributes: the user attributes of the trial; silence: seconds without a sign of life;
        lost_after: how many of them there are until a process of another machine counts as dead.
    """
    if not (owner := attributes.get(OWNER)):
        return True
    value = json.loads(owner)
    if value["machine"] == machine():
        return began(value["pid"]) != value["began"]
    return silence > lost_after


def host(attributes: Mapping[str, Any]) -> str:
    """The name of the machine that works on a trial, and its process id."""
    value = json.loads(attributes.get(OWNER) or "{}")
    return f"{value.get('machine', '?').partition('/')[0]}:{value.get('pid', '?')}"
