"""Machine code on disk: files that are checked before use, and written again where they are damaged.

numba keeps an index beside the code, and ends the program where either is damaged; two processes that write
at once may exchange each other's code; and it notices a change of a function's own module alone. Here the
name of a file says all that its code depends on: the function, the types, the processor, numba's version and
the source of this folder. The file begins with a digest of the rest. Importing this module needs numba.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

DIGEST = hashlib.sha256().digest_size
SCRAP = ".part"
"""How a file is named that is not whole yet."""


@functools.cache
def sources() -> str:
    """A fingerprint of all modules of this folder, which call into each other."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()


@functools.cache
def say_once(folder: str) -> None:
    """Warns that compiled code of a folder is made anew."""
    warnings.warn(
        f"compiled code in {folder} is damaged and made anew; should this come again, NUMBA_CACHE_DIR names "
        "another folder for it",
        RuntimeWarning,
        stacklevel=2,
    )


class CodeFile:
    """Compiled code by key, a file for each; what numba's cache of a function asks for."""

    def __init__(self, folder: str, base: str) -> None:
        self.folder, self.base = folder, base

    def path(self, key: object) -> Path:
        """Where the code for a key is."""
        name = hashlib.sha256(repr((key, numba.__version__, sources())).encode()).hexdigest()[:24]
        return Path(self.folder, f"{self.base}.{name}.nbc")

    def load(self, key: object) -> Any:
        """The code, or None where there is none or it is damaged."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            say_once(self.folder)
            return None
        return pickle.loads(content[DIGEST:])

    def save(self, key: object, data: object) -> None:
        """Writes it under another name first, so that nobody reads half of it."""
        content = dumps(data)
        self.remove_scraps()
        descriptor, name = tempfile.mkstemp(SCRAP, self.base, self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(name, self.path(key))
        except OSError:
            Path(name).unlink()
            raise

    def remove_scraps(self) -> None:
        """Removes what processes that were killed a while ago have left of this function."""
        for path in Path(self.folder).glob(f"*{SCRAP}"):
            with contextlib.suppress(OSError):
                if path.name.startswith(self.base) and time.time() - path.stat().st_mtime > 60:
                    path.unlink()

    def flush(self) -> None:
        """Nothing: there is no index."""


class CheckedCache(FunctionCache):
    """numba's cache of a function, with `CodeFile` behind it; no fault of the disk ends a program."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = CodeFile(self._cache_path, self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # written by another numba, under the same version
            say_once(self._cache_path)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # a full disk, or a folder that is gone: it is compiled again next time
            return


def keep(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Lets a function of numba keep its code on disk, where there is a place that can be written."""
    try:
        dispatcher._cache = CheckedCache(function)
    except RuntimeError:  # no such place: each process compiles anew
        return
