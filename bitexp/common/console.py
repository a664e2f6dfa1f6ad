"""What a run says: the header before the first step, the answer at the end; train.log keeps it too."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitexp.common.files import open_for_appending
from bitexp.common.format import wrapped
from bitexp.common.narrow import UNLIMITED, fitted
from bitexp.common.screen import loss
from bitexp.common.secrets import redacted

LIBRARIES = ("pytorch_lightning", "lightning_fabric", "lightning", "wandb", "py.warnings")


class Report:
    """Prints calm lines for people, and keeps them in a file once the run has a folder."""

    def __init__(
        self, quiet: bool = False, brief: bool = False, stderr: bool = False, place: str | None = None
    ) -> None:
        """`quiet` prints nothing; `brief` has a line for what was done before, and not a block.

        `place` is that of a job among those that another tells of: its details go to its file alone.
        """
        self.brief, self.place = brief, place
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet, stderr=stderr)
        if not self.console.is_terminal:
            self.console.width = UNLIMITED
        self._file: logging.FileHandler | None = None
        self._lost = False

    def keep(self, path: Path) -> None:
        """Appends everything from here on to a file, with what the libraries log."""
        self._file = LogFile(path, encoding="utf-8")
        self._file.setFormatter(WithoutSecrets("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        for name in LIBRARIES:
            logging.getLogger(name).addHandler(self._file)

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            for name in LIBRARIES:
                logging.getLogger(name).removeHandler(self._file)
            with contextlib.suppress(OSError):  # the disk is full
                self._file.close()
            self._file = None

    def line(self, text: str = "") -> None:
        """One line, to the screen and to the file, without secrets."""
        text = redacted(text)
        self.console.print(text, markup=False)
        self._keep(text)

    def _keep(self, text: str) -> None:
        if not self._lost and (lost := loss()) and self._file is not None:
            self._lost = True
            self._log(
                f"the screen is gone ({lost.strerror}): from here on, this file alone has what the run says"
            )
        self._log(text)

    def detail(self, text: str) -> None:
        """One line, which the screen has where this run is alone on it."""
        self.line(text) if self.place is None else self._keep(redacted(text))

    def sentences(self, text: str) -> None:
        """A line that a terminal shows in several where it is long, broken between words."""
        self._lines(text, "")

    def _lines(self, text: str, indent: str) -> None:
        text = redacted(text)
        if self.place is not None:
            return self._keep(text)
        width = self.console.width if self.console.is_terminal else UNLIMITED
        lines = wrapped(text, width, indent) if len(text) > width else [text]
        self.console.print("\n".join(lines), markup=False)
        self._keep(text)

    def _log(self, text: str) -> None:
        if self._file is not None:
            record = logging.LogRecord("bitexp", logging.INFO, "", 0, text, None, None)
            self._file.emit(record)

    def rows(self, title: str, rows: dict[str, str]) -> None:
        """A title and a block of `name  text` lines, aligned."""
        self.detail(title)
        width = max((len(name) for name in rows), default=0)
        for name, text in rows.items():
            line = f"  {name:<{width}}  {text}"
            if text.startswith("python"):  # to be copied
                self.detail(line)
            else:
                self._lines(line, " " * (width + 4))

    def table(self, table: Table, optional: Sequence[str] = (), rest: str = "") -> None:
        """A table, to the screen; where that is narrow without some columns, which are named.

        Args:
            optional: headings that may be left out, the least important first; rest: where they are.
        """
        table, left_out = fitted(table, self.console, optional)
        self.console.print(table)
        if left_out:
            self.sentences(f"For a wider screen{rest}: {', '.join(left_out)}.")


class WithoutSecrets(logging.Formatter):
    """What libraries log may quote a URL with its password."""

    def format(self, record: logging.LogRecord) -> str:
        return str(redacted(super().format(record)))


class LogFile(logging.FileHandler):
    """A log that does without a line it cannot write, instead of printing a traceback for each.

    It follows no link that lies in its place.
    """

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_for_appending(Path(self.baseFilename)), encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        """The disk is full: the run says so itself."""


@contextlib.contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[float], None]]:
    """A line on a terminal while work of unknown length runs; call what it gives with the amount so far."""
    columns = (SpinnerColumn(), TextColumn(what), TextColumn("{task.completed:,.1f} " + unit))
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=None)
        yield lambda amount: progress.update(task, completed=amount)


def write(text: str) -> None:
    """A piece of an answer as it comes, to stdout."""
    print(text, end="", flush=True)


def error(message: str) -> None:
    """Says on stderr what was wrong, without secrets."""
    print(f"bitexp: {redacted(message)}", file=sys.stderr)


def trace(kind: type[BaseException], problem: BaseException, frames: TracebackType | None) -> None:
    """Prints a traceback to stderr as Python does, but without secrets."""
    print(redacted("".join(traceback.format_exception(kind, problem, frames))), end="", file=sys.stderr)
