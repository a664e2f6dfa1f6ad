"""How a process ends: the exit code of its work, errors in words, no traceback for what the user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from bitexp.common.console import error, trace
from bitexp.common.errors import UserError, describe_crash


class Progress:
    """How far this process got, and the worst exit code of its jobs, with which `main` leaves."""

    started = False
    worst = 0

    @classmethod
    def note(cls, code: int) -> None:
        """Remembers an exit code, if it is worse than those before."""
        cls.worst = max(cls.worst, code)


def guarded(entry: Callable[[], Any]) -> int:
    """Runs a command and returns its exit code: 2 where the user can mend what was wrong, 130 for Ctrl-C.

    What else goes wrong is a fault of ours and keeps its traceback, but for secrets.
    """
    Progress.started, Progress.worst = False, 0
    try:
        entry()
    except KeyboardInterrupt:
        return Progress.worst or 130
    except BrokenPipeError:  # as in `python -m bitexp --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as problem:
        error(str(problem))
        return 2
    except Exception as problem:
        if (described := describe_crash(problem))["kind"] == "surroundings":
            error(described["reason"])
            return 2
        sys.excepthook = trace
        raise
    return Progress.worst
