"""Packages of one's own that register things, written and imported for a test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from bitexp.track import checkout, code

QUARTER = '''
from torch import Tensor

from bitexp.quant import WEIGHTS, Levels, WeightQuantizer


class Quarter(WeightQuantizer):
    """Five levels, the outer ones at the largest weight."""

    levels = Levels(-2, 2)

    def scale(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(-1, keepdim=True) / 2
'''
"""The weight quantizer of a README."""


class Load(Protocol):
    """Writes files by their dotted names and imports `module`, all as in a new process."""

    def __call__(self, module: str, files: dict[str, str]) -> ModuleType: ...


def forget_code() -> None:
    """What a process remembers of its source is forgotten, as in a new one."""
    remembered: list[Any] = [code.own_files, code.committed, code.is_committed, code.changed, code.tree]
    remembered += [checkout.checkout, checkout.git_state, checkout.uncommitted]
    for function in remembered:
        function.cache_clear()


@contextmanager
def extensions(folder: Path) -> Iterator[Load]:
    """Modules in a folder, which are gone again afterwards."""
    modules, path, flag = set(sys.modules), sys.path.copy(), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # two edits of a second would share their bytecode

    def unload() -> None:
        for name in set(sys.modules) - modules:
            where = getattr(sys.modules[name], "__file__", None), *getattr(sys.modules[name], "__path__", ())
            if any(str(place).startswith(str(folder)) for place in where):
                del sys.modules[name]
        importlib.invalidate_caches()
        forget_code()

    def load(module: str, files: dict[str, str]) -> ModuleType:
        for name, text in files.items():
            file = folder / f"{name.replace('.', '/')}.py"
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_text(text)
        unload()
        return importlib.import_module(module)

    try:
        yield load
    finally:
        unload()
        sys.path[:], sys.dont_write_bytecode = path, flag
