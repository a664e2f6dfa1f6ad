"""What of many like cases `make test` runs; `make test-all` runs them all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def others_slow(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """The cases as parameters of a test, slow but for those that are named; each of these must be one."""
    cases = list(cases)
    missing = [case for case in fast if case not in cases]
    assert not missing, f"no cases: {missing}"
    return [case if case in fast else pytest.param(*parts(case), marks=pytest.mark.slow) for case in cases]


def parts(case: Any) -> tuple[Any, ...]:
    """What stands for several parameters is a tuple."""
    return case if isinstance(case, tuple) else (case,)
