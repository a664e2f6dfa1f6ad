"""Runs that are made in the process of the test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from bitexp.common.console import Report
from tests.support.configs import SMALL, compose_config

if TYPE_CHECKING:
    from bitexp.run.road import Outcome


class Train(Protocol):
    """Makes the small run with further overrides, in this process; `base` stands in for the small one."""

    def __call__(
        self, *overrides: str, base: Sequence[str] = SMALL, report: Report | None = None
    ) -> Outcome: ...


def train(*overrides: str, base: Sequence[str] = SMALL, report: Report | None = None) -> Outcome:
    """Makes the small run with further overrides, quietly unless there is a `report`."""
    from bitexp.run.road import run

    words = (*base, *overrides)
    return run(compose_config(*words), words, report or Report(quiet=True))
