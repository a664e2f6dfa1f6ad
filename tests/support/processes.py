"""Programs and processes: `main` called in this process, or a function in a forked one that may be killed."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (negative: the signal that killed it) and what it said."""

    code: int
    out: str
    err: str


class Program(Protocol):
    """A program that is called with words in this process."""

    def __call__(self, *words: object) -> Ended: ...


class InProcess(Protocol):
    """Makes of a program's `main` and its name a function of its words that tells how it ended."""

    def __call__(self, main: Callable[[], None], name: str) -> Program: ...


class Start(Protocol):
    """Starts a function in a process of its own."""

    def __call__(self, work: Callable[[], Any]) -> Child: ...


class Command(Protocol):
    """`python -m bitexp WORDS...` in a process of its own; `first` runs before it, to arrange a fault."""

    def __call__(self, *words: str, first: Callable[[], Any] = ...) -> Ended: ...


class Child:
    """A function in a forked process: a real one, to be killed, that imports nothing a second time.

    Its exit code is what the function returns or exits with (0 for no number), and 70 if it raises.
    """

    def __init__(self, work: Callable[[], Any], folder: Path) -> None:
        folder.mkdir()
        self.files = (folder / "out", folder / "err")
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of a fork beside threads
            self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def _run(self, work: Callable[[], Any]) -> NoReturn:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, file in enumerate(self.files, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r") for n in range(3))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            value = work()
            code = value if isinstance(value, int) else 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def runs(self) -> bool:
        """Whether it has not ended yet; leaves its end to `wait`."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Ended:
        """Waits for its end."""
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), *(file.read_text() for file in self.files))


def bitexp_command(words: tuple[str, ...], first: Callable[[], Any] = lambda: None) -> Callable[[], None]:
    """`python -m bitexp WORDS...` as a function for a forked process; `first` runs there before it."""

    def work() -> None:
        from bitexp.__main__ import main

        sys.argv = ["bitexp", *words]
        first()
        main()

    return work


def call_main(main: Callable[[], None], argv: list[str], capsys: pytest.CaptureFixture[str]) -> Ended:
    """What a program says and exits with when it is called in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
    assert isinstance(stop.value.code, int)
    return Ended(stop.value.code, *capsys.readouterr())
