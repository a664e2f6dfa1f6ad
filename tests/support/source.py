"""The source of bitexp as data: who imports whom, and which private names of other libraries it uses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bitexp"


@dataclass(frozen=True)
class Arrow:
    """An import of one module by another. `deferred`: inside a function, or for the type checker only."""

    file: str
    line: int
    source: str
    target: str
    deferred: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.source} -> {self.target}"

    @property
    def rooms(self) -> tuple[str, str]:
        """The rooms of bitexp at its two ends; that of bitexp/__init__.py is "bitexp" itself."""
        return room(self.source), room(self.target)


def room(module: str) -> str:
    """The room of a module of bitexp: `quant` for `bitexp.quant.layers`; another library is its own."""
    top, _, rest = module.partition(".")
    return (rest.partition(".")[0] or top) if top == "bitexp" else top


@cache
def trees() -> dict[Path, ast.Module]:
    """Every file of bitexp, parsed."""
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_deferring(node: ast.AST) -> bool:
    """Whether what stands inside does not run when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test).endswith("TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def imports(node: ast.AST, deferred: bool = False) -> Iterator[tuple[int, str, bool]]:
    """Line, full name and deferral of every import below a node; `from a import b` imports `a.b`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, name.name, deferred) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"a relative import in line {child.lineno}"
            yield from ((child.lineno, f"{child.module}.{name.name}", deferred) for name in child.names)
        yield from imports(child, deferred or is_deferring(child))


@cache
def arrows() -> tuple[Arrow, ...]:
    """Every import in bitexp; one that leads into bitexp ends at a module of it."""
    modules = {module_name(path) for path in trees()}

    def end(name: str) -> str:
        found = name
        while found.startswith("bitexp") and found not in modules:
            found = found.rpartition(".")[0]
        return found

    return tuple(
        Arrow(str(path.relative_to(ROOT)), line, module_name(path), end(name), deferred)
        for path, tree in trees().items()
        for line, name, deferred in imports(tree)
    )


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_")


def own_names(tree: ast.Module) -> Iterator[str]:
    """What a module names: functions, classes, variables and what is set on `self` or `cls`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


def foreign_privates() -> dict[str, set[str]]:
    """By file: private names that are imported from elsewhere, or used as attributes and nowhere ours."""
    ours = {name for tree in trees().values() for name in own_names(tree)} | {"_replace"}  # of named tuples
    found: dict[str, set[str]] = {}
    for path, tree in trees().items():
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - ours
        for _, name, _ in imports(tree):
            if not name.startswith(("bitexp.", "__future__")):
                names.update(name.split("."))
        if used := {name for name in names if is_private(name)}:
            found[str(path.relative_to(ROOT))] = used
    return found


def texts_of_the_locale() -> Iterator[str]:
    """The calls that read or write text without saying in which encoding."""
    for path, tree in trees().items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            mode = words.get("mode", "".join(ast.unparse(argument) for argument in call.args[-1:]))
            opens = name == "open" or (name.endswith(".open") and name not in ("os.open", "Image.open"))
            is_text = (opens and "b" not in mode) or name.endswith((".read_text", ".write_text"))
            if (is_text or ("text" in words and name.startswith("subprocess."))) and "encoding" not in words:
                yield f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
