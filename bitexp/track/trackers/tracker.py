"""The registry of trackers, and what every tracker is: a check before any work, and a Lightning logger.

A new one is a class in a file beside this one, and a YAML in `conf/logger` with its arguments.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from bitexp.common.errors import UserError
from bitexp.common.registry import Registry
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

TRACKERS: Registry[type[Tracker]] = Registry("tracker")


class Tracker:
    """A service that shows runs. Keyword arguments of a subclass come from its section of `logger`."""

    replays = False
    """Set by `start` where what an earlier attempt sent is gone there, so that it is sent again."""

    def check(self) -> None:
        """Raises `UserError` where it cannot work here, before any work is done."""

    def start(self, settings: Settings, folder: RunFolder) -> Logger:
        """Begins a run there, or continues that of an earlier attempt at the same run."""
        raise NotImplementedError

    def finish(self, logger: Logger, failed: bool) -> None:
        """Ends the run there."""
        logger.finalize("failed" if failed else "success")


def label(settings: Settings, folder: RunFolder) -> str:
    """What a run is called there."""
    return f"{settings.name}-{settings.quantizer.name}-seed{settings.seed}-{folder.id[:4]}"


def require(package: str, word: str) -> None:
    """Raises `UserError` where the package of a tracker is not installed."""
    if find_spec(package) is None:
        raise UserError(f"logger={word} needs the package {package}: pip install 'bitexp[{word}]'")
