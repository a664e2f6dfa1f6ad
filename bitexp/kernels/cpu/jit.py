"""The one way in which functions are compiled here: numba, without the global lock, bits as written.

Importing this module does not import numba; `missing()` and decorating a function do. So modules with
compiled functions are imported only where `missing()` is None, inside the functions that need them.

Machine code is kept on disk (`cache.py`): in `NUMBA_CACHE_DIR` where that is set, else in `__pycache__`
beside the module, else, where that cannot be written, in the user's cache folder; where nothing can be
written each process compiles anew.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def missing() -> str | None:
    """Why nothing can be compiled here, and what mends it; None where numba works. Imports numba."""
    if find_spec("numba") is None:
        return "numba is not installed: pip install 'bitexp[cpu]'"
    try:
        import numba
    except Exception as error:  # such as a numpy that is too new for it
        return f"numba cannot be imported ({error}): pip install --upgrade 'bitexp[cpu]'"
    if numba.config.DISABLE_JIT:
        return "numba is told not to compile (NUMBA_DISABLE_JIT): unset that variable"
    return None


def of_integers(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    """What gives a function of integers compiled, as the machine code itself.

    numba's choice by types takes a microsecond for every array, as long as a small layer's work. Memory is
    given by its address, and the caller keeps it alive.
    """
    count = len(inspect.signature(function).parameters)

    @functools.cache
    def entry() -> Callable[..., Any]:
        from numba import types

        dispatcher: Any = compiled(function)
        signature = (types.int64,) * count
        dispatcher.compile(signature)
        code: Callable[..., Any] = dispatcher.overloads[signature].entry_point
        return code

    return entry


def compiled(function: F) -> F:
    """Compiles a function at its first call, for the types of that call.

    It runs without the global lock and without checks of bounds. Floats are rounded after every single
    operation: no reassociation and no fused multiply-add. Division by zero gives inf or nan as in IEEE 754.
    """
    from numba import njit

    from bitexp.kernels.cpu.cache import keep

    dispatcher = njit(nogil=True, boundscheck=False, error_model="numpy")(function)
    keep(dispatcher, function)
    return dispatcher
