"""Imports of many modules at once, which the garbage collector would look through again and again."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collects no garbage within, and leaves what was made there out of all later collections.

    Modules stay as long as the process: collecting costs an import of torch and Lightning a quarter of its
    time. Where torch is there already, little is left to import, and nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
