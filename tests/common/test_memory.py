"""What the C library is told of the memory that a step of training frees."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest

from bitexp.common.memory import MAPPED, TRIM, keep_freed_memory


class Library:
    """A C library that writes down what it is told."""

    def __init__(self) -> None:
        self.told: dict[int, int] = {}

    def mallopt(self, option: int, value: int) -> int:
        self.told[option] = value
        return 1


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_much_is_kept_and_the_largest_pieces_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    assert library.told == {TRIM: 2**29, MAPPED: 2**25}


def test_where_the_library_has_no_such_choice_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: Any) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", other)
    keep_freed_memory()
