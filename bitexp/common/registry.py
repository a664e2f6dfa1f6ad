"""Names in YAML are names in code: one registry per kind of thing, filled by a decorator.

    MODELS = Registry("model")

    @MODELS.register("vit")
    class ViT(nn.Module): ...

Other packages add theirs through an entry point of the group `bitexp`: a module that registers
things when it is imported (and brings its YAML in a folder `conf` beside it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from bitexp.common.errors import Unusable
from bitexp.common.spelling import nearest

T = TypeVar("T")


class UnknownName(Unusable):
    """A word that no registry knows; the message lists the known ones and the nearest match."""


class Registry(Generic[T]):
    """Things of one kind by the word a user types. `kind` names it in errors: "quantizer", "model"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a thing under `name`. Raises `ValueError` when the name is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered already")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> Any:
        """The thing called `name`. Raises `UnknownName` with the known words and the nearest match."""
        load_plugins()
        if name not in self._entries:
            known = ", ".join(self.names())
            raise UnknownName(f"unknown {self.kind} '{name}'.{nearest(name, self.names())} Known: {known}")
        return self._entries[name]

    @contextmanager
    def temporarily(self, name: str, entry: T) -> Iterator[T]:
        """Has `entry` under `name` as long as the `with` block lasts, in place of what has that name.

        For a test or a notebook that tries a thing out:

            with QUANTIZERS.temporarily("mine", Mine):
                ...
        """
        load_plugins()
        before = {name: self._entries[name]} if name in self._entries else {}
        self._entries[name] = entry
        try:
            yield entry
        finally:
            del self._entries[name]
            self._entries.update(before)

    def names(self) -> list[str]:
        """All known words, sorted."""
        load_plugins()
        return sorted(self._entries)


_loaded = False


def load_plugins() -> None:
    """Imports every module that an installed package names in the entry point group `bitexp`, once."""
    global _loaded
    if not _loaded:
        _loaded = True
        for point in entry_points(group="bitexp"):
            point.load()


def load_modules(package: str, path: Iterable[str]) -> None:
    """Imports every module of a package, so that what they register is known: a new file needs no list."""
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")
