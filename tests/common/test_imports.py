"""Imports of many modules at once."""

from __future__ import annotations

import gc
import subprocess
import sys

from bitexp.common.imports import uncollected

PROGRAM = """
import gc
from bitexp.common.imports import uncollected

collections = []
gc.callbacks.append(lambda phase, about: collections.append(about))
with uncollected():
    assert not gc.isenabled()
    import torch
assert collections == []
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
"""


def test_nothing_is_collected_while_torch_is_imported() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_where_torch_is_there_nothing_is_changed() -> None:
    import torch  # noqa: F401

    frozen = gc.get_freeze_count()
    with uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
