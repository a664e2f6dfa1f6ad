"""The code that a run's id counts: the classes that its config names, edited or of your own.

A class of bitexp as it was committed counts by its `revision: ClassVar[int]`, which is raised when its
numbers change; revision 1 adds nothing. A file that was edited or is new in the rooms that compute, and a
file of another package, counts by its syntax tree without comments and docstrings, where a class that the
config names is written in it, inherits from it or imports it. Imports are followed within those rooms and
within the package of the class, but not through the `__init__` of a room, which imports all of it.

`committed.json` holds what the files of those rooms were when they were committed (`make revisions`).
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from bitexp.config.paths import PACKAGE

ROOMS = ("quant", "kernels", "models", "data", "tasks")
"""Those that compute: what is registered in them, and what it is made of."""
COMMITTED = PACKAGE / "track" / "committed.json"


@dataclass(frozen=True)
class Code:
    """The code behind a run, as far as its id counts it.

    Args:
        digests: eight hexadecimal digits by the section of the config that names the classes; no entry where
            they are as committed, in their first revision.
        files: what was edited or is of another package, each with the hash of its syntax tree.
    """

    digests: Mapping[str, str]
    files: Mapping[str, str]


def code_of(named: Mapping[str, Mapping[str, Any]]) -> Code:
    """The code behind what a config names: registered classes by section and word."""
    digests: dict[str, str] = {}
    files: dict[str, str] = {}
    for section, entries in named.items():
        revisions = {word: number for word, entry in entries.items() if (number := revision(entry)) != 1}
        own: dict[str, str] = {}
        for entry in entries.values():
            own |= own_files(defined(entry))
        if revisions or own:
            digests[section] = digest(json.dumps([revisions, own], sort_keys=True).encode())[:8]
            files |= own
    return Code(digests, files)


def defined(entry: Any) -> Any:
    """The class or function behind what is registered."""
    if isinstance(entry, partial):
        entry = entry.func
    return entry if inspect.isclass(entry) or inspect.isroutine(entry) else type(entry)


def packages_of(named: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The packages and loose modules, bitexp first, that what a config names is written in."""
    places: list[Path | None] = [PACKAGE]
    for target in (defined(entry) for entries in named.values() for entry in entries.values()):
        home = root_of(target)
        places.append(home.folder if home.name else source_of(target))
    return [place for place in dict.fromkeys(places) if place is not None]


def revision(entry: Any) -> int:
    """How often the numbers of a class have changed, counted from 1."""
    number = getattr(defined(entry), "revision", 1)
    return number if isinstance(number, int) else 1


@dataclass(frozen=True)
class Root:
    """Where a package lies; the name of a folder with loose modules is empty."""

    name: str
    folder: Path

    def find(self, module: str) -> Path | None:
        """The file of a module in it, or None."""
        parts = module.split(".")
        if self.name and parts[0] != self.name:
            return None
        place = self.folder.joinpath(*parts[bool(self.name) :])
        candidates = (place / "__init__.py", place.with_suffix(".py"))
        return next((file for file in candidates[not self.name :] if file.is_file()), None)


OURS = Root("bitexp", PACKAGE)


# The files of a process are those that it has loaded: what is edited while it works is not looked at again.
@cache
def own_files(target: Any) -> dict[str, str]:
    """The files of a class or function that are not as committed in bitexp, each with its hash."""
    home = root_of(target)
    kinds = inspect.getmro(target) if inspect.isclass(target) else (target,)
    written = [file for kind in kinds if (file := file_of(kind, home))]
    waiting, seen = list(written), dict.fromkeys(written)
    while waiting:
        file = waiting.pop()
        front = file.name == "__init__.py" and file not in written
        if not is_committed(file) or (changed() and not front):
            new = [other for other in imported(file, home) if other not in seen]
            waiting += new
            seen |= dict.fromkeys(new)
    found = {label(file, home): tree_hash(file) for file in seen if not is_committed(file)}
    return dict(sorted(found.items())) or unreadable(target, seen)


def unreadable(target: Any, seen: Iterable[Path]) -> dict[str, str]:
    """A class without a file, as of a prompt, counts by its name."""
    name = f"{target.__module__}.{target.__qualname__}"
    return {} if list(seen) else {name: digest(name.encode())}


def root_of(target: Any) -> Root:
    """The package in which a class or function is written."""
    top = target.__module__.partition(".")[0]
    if top == OURS.name:
        return OURS
    module = sys.modules.get(top)
    for folder in getattr(module, "__path__", ()):
        return Root(top, Path(folder).resolve())
    file = source_of(target)
    return Root("", file.parent if file else Path())


def file_of(target: Any, home: Root) -> Path | None:
    """The file of a class where it is one of bitexp or of the same package; None for other libraries."""
    file = source_of(target)
    if file is None or not (file.is_relative_to(home.folder) or file.is_relative_to(PACKAGE)):
        return None
    return file if target.__module__.partition(".")[0] in (OURS.name, home.name) or not home.name else None


def source_of(target: Any) -> Path | None:
    """The file that a class or function was read from, or None."""
    try:
        file = inspect.getsourcefile(target)
    except TypeError:
        return None
    return Path(file).resolve() if file and Path(file).is_file() else None


def imported(file: Path, home: Root) -> Iterator[Path]:
    """The files that a file imports, anywhere in it, from the rooms that compute or from its own package."""
    root = OURS if file.is_relative_to(PACKAGE) else home
    if not file.is_relative_to(root.folder):
        return
    package = [root.name] * bool(root.name) + [*file.relative_to(root.folder).parts[:-1]]
    roots = [OURS] if home == OURS or is_shared(home.folder) else [OURS, home]
    for name in imports(file, package):
        for place in roots:
            if (found := place.find(name)) and (place != OURS or room_of(found) in ROOMS):
                yield found


def is_shared(folder: Path) -> bool:
    """Whether a folder holds what anyone installs, so that its modules have nothing to do with each other."""
    return folder in {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}


def imports(file: Path, package: list[str]) -> Iterator[str]:
    """The modules, and what may be modules, that a file of a package imports."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(file: Path) -> str:
    """The room of bitexp that a file is in."""
    return file.relative_to(PACKAGE).parts[0]


def label(file: Path, home: Root) -> str:
    """What a file is called on every machine."""
    root = OURS if file.is_relative_to(PACKAGE) else home
    return (Path(root.name) / file.relative_to(root.folder)).as_posix()


# What was committed


@cache
def committed() -> dict[str, list[str]]:
    """The hash of the bytes, and that of the syntax tree, of every file of the rooms that compute."""
    found: dict[str, list[str]] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    return found


def computing_files() -> list[Path]:
    """The files of the rooms that compute."""
    return sorted(file for room in ROOMS for file in (PACKAGE / room).rglob("*.py"))


@cache
def is_committed(file: Path) -> bool:
    """Whether a file is one of bitexp, as it was committed but for comments and docstrings."""
    if not file.is_relative_to(PACKAGE):
        return False
    entry = committed().get(file.relative_to(PACKAGE).as_posix())
    return entry is not None and (digest(file.read_bytes()) == entry[0] or tree_hash(file) == entry[1])


@cache
def changed() -> bool:
    """Whether any file of the rooms that compute was edited or is new."""
    return not all(map(is_committed, computing_files()))


def hashes() -> dict[str, list[str]]:
    """What `committed.json` should hold."""
    return {
        file.relative_to(PACKAGE).as_posix(): [digest(file.read_bytes()), tree_hash(file)]
        for file in computing_files()
    }


@cache
def tree(file: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_bytes())


def tree_hash(file: Path) -> str:
    """A hash of a file's syntax tree; strings that are statements, such as docstrings, do not count."""
    return digest(repr(plain(tree(file))).encode())


def plain(node: Any) -> Any:
    """A syntax tree as lists, alike in all versions of Python: without places, and without what is empty."""
    if isinstance(node, ast.AST):
        fields = ((name, plain(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
        return [type(node).__name__, *(field for field in fields if field[0] not in ("ctx", "kind"))]
    if isinstance(node, list):
        return [plain(item) for item in node if not is_text(item)]
    return repr(node)


def is_text(node: Any) -> bool:
    """Whether a statement is nothing but a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def digest(content: bytes) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
