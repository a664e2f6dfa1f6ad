"""The code of a run: what is committed counts by its revision, what is edited or one's own by its syntax."""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitexp.kernels import KERNELS
from bitexp.models import MODELS
from bitexp.quant import WEIGHTS
from bitexp.quant.parts import ACTIVATIONS
from bitexp.track import code as ours
from bitexp.track.code import code_of
from bitexp.track.folder import identity
from tests.support.extensions import QUARTER, Load, extensions, forget_code


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    with extensions(tmp_path) as load:
        yield load


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes files of bitexp such as were edited since they were committed, or are new."""

    def edit(*names: str, new: bool = False) -> None:
        forget_code()
        known = {name: entry for name, entry in ours.committed().items() if name not in names}
        known |= {} if new else {name: ["0", "0"] for name in names}
        monkeypatch.setattr(ours, "committed", lambda: known)

    edit.undo = monkeypatch.undo  # type: ignore[attr-defined]
    yield edit
    monkeypatch.undo()
    forget_code()


def files(target: Any) -> list[str]:
    """What counts of a class."""
    return list(code_of({"quantizer": {"weights=mine": target}}).files)


def digest(target: Any) -> str | None:
    return code_of({"quantizer": {"weights=mine": target}}).digests.get("quantizer")


def weights(name: str) -> Any:
    return WEIGHTS.get(name)


# bitexp as it was committed


def test_what_is_committed_adds_nothing_to_an_id() -> None:
    named = {
        "quantizer": {f"weights={name}": weights(name) for name in WEIGHTS.names()},
        "model": {name: MODELS.get(name) for name in MODELS.names()},
        "kernel": {name: KERNELS.get(name) for name in KERNELS.names()},
    }
    code = code_of(named)
    assert (code.digests, code.files) == ({}, {})
    assert identity({"seed": 0}, "data", code.digests) == "696077af96", "the id of earlier versions"


def test_a_raised_revision_is_another_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest(weights("binary")) is None
    found = []
    for number in (2, 3):
        monkeypatch.setattr(weights("binary"), "revision", number, raising=False)
        found.append(code_of({"quantizer": {"weights=binary": weights("binary")}}))
    first, second = (code.digests["quantizer"] for code in found)
    assert first != second
    assert [dict(code.files) for code in found] == [{}, {}]
    assert identity({}, "data", found[0].digests) != identity({}, "data")


# bitexp, edited


def test_an_edited_file_counts_where_its_classes_are_named(edit: Any) -> None:
    edit("quant/weights/ternary.py")
    assert files(weights("ternary_mean")) == ["bitexp/quant/weights/ternary.py"]
    assert files(weights("ternary_median")) == ["bitexp/quant/weights/ternary.py"]
    assert files(weights("binary")) == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("quant/parts.py", WEIGHTS.get("lsq")),
        ("quant/product.py", WEIGHTS.get("lsq")),
        ("kernels/cpu/tile.py", KERNELS.get("cpu")),
        ("kernels/reference.py", KERNELS.get("int8")),
        ("models/registry.py", MODELS.get("torchvision")),
    ],
)
def test_an_edited_file_counts_where_it_is_inherited_from_or_imported(
    name: str, target: Any, edit: Any
) -> None:
    edit(name)
    assert files(target) == [f"bitexp/{name}"]
    assert files(ACTIVATIONS.get("int8")) == ([f"bitexp/{name}"] if name.startswith("quant") else [])


def test_a_new_file_of_a_room_counts(edit: Any) -> None:
    edit("quant/weights/lsq.py", new=True)
    assert files(weights("lsq")) == ["bitexp/quant/weights/lsq.py"]


def test_what_only_looks_at_runs_does_not_count() -> None:
    assert "report/tables.py" not in ours.committed()
    assert "run/road.py" not in ours.committed()


# a package of one's own


def test_code_of_ones_own_counts_by_its_syntax(load: Load) -> None:
    def after(old: str = "", new: str = "") -> str | None:
        return digest(load("my_package.mine", {"my_package.mine": QUARTER.replace(old, new)}).Quarter)

    first = after()
    assert first is not None
    assert files(load("my_package.mine", {}).Quarter) == ["my_package/mine.py"]
    assert after("/ 2", "/ 8") != first
    assert after("/ 2", "/ 2  # a comment") == first
    assert after("Five levels", "Six levels") == first
    assert after("amax(-1, keepdim=True)", "amax(\n            -1, keepdim=True\n        )") == first
    assert after("/ 2", "/ 2.0") != first
    assert after() == first


IMPORTS = [
    "from my_package.helpers import half",
    "from my_package import helpers",
    "from .helpers import half",
    "from . import helpers",
    "import my_package.helpers",
    "def later():\n    from my_package.helpers import half",
    "from my_package.between import half",
]


@pytest.mark.parametrize("line", IMPORTS)
def test_what_it_imports_of_its_own_package_counts(line: str, load: Load) -> None:
    package = {"my_package.__init__": "", "my_package.mine": f"{line}\n{QUARTER}", "my_package.other": ""}
    package["my_package.between"] = "from my_package.helpers import half"
    found = []
    for half in (2, 8):
        package["my_package.helpers"] = f"import os, torch\n\ndef half(x):\n    return x / {half}\n"
        target = load("my_package.mine", package).Quarter
        assert {"my_package/mine.py", "my_package/helpers.py"} <= set(files(target))
        assert "my_package/other.py" not in files(target)
        found.append(digest(target))
    assert found[0] != found[1]


def test_it_counts_wherever_the_package_lies(tmp_path: Path) -> None:
    found = []
    for place in ("one", "two"):
        with extensions(tmp_path / place) as load:
            found.append(digest(load("my_package.mine", {"my_package.mine": QUARTER}).Quarter))
    assert found[0] == found[1]


def test_loose_modules_count_with_those_beside_them(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = {"mine": f"import helper, json\n{QUARTER}", "helper": "x = 1"}
    assert files(load("mine", loose).Quarter) == ["helper.py", "mine.py"]
    monkeypatch.setattr(ours, "is_shared", lambda folder: folder == tmp_path)
    forget_code()
    assert files(load("mine", loose).Quarter) == ["mine.py"], "what is installed side by side"


def test_a_class_of_another_package_brings_the_edited_class_it_inherits_from(load: Load, edit: Any) -> None:
    text = "from bitexp.quant.weights.binary import Binary\n\nclass Mine(Binary):\n    pass\n"
    target = load("mine", {"mine": text}).Mine
    assert files(target) == ["mine.py"]
    edit("quant/weights/binary.py")
    assert files(target) == ["bitexp/quant/weights/binary.py", "mine.py"]


def test_functions_instances_and_what_has_no_file_count(load: Load) -> None:
    module = load("mine", {"mine": f"{QUARTER}\ndef build(): ...\n"})
    assert files(module.build) == files(functools.partial(module.build)) == ["mine.py"]
    assert files(module.Quarter(__import__("torch").ones(1, 1))) == ["mine.py"]
    names: dict[str, Any] = {"__name__": "prompt"}
    exec("class Typed: ...", names)
    assert files(names["Typed"]) == ["prompt.Typed"]


# syntax


SAME = [
    ("x = 1", "x = 1  # comment"),
    ("def f():\n    return 1", 'def f():\n    """Says."""\n    return 1'),
    ("class A:\n    x = 1", 'class A:\n    """Says."""\n    x = 1\n    """what x is"""'),
    ("f(1, 2)", "f(\n    1,\n    2,\n)"),
]
OTHER = ["x = f'{y}'", "x = f'{y!r}'", "def x(): ...", "async def x(): ...", "x == 1", "x = [1]",
         "x = 1", "x = 1.0", "x = True", "y = 1", "x = '1'", "x: int = 1", "f(1)", "f(a=1)"]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_comments_and_docstrings_do_not_count(one: str, other: str) -> None:
    assert ours.plain(ast.parse(one)) == ours.plain(ast.parse(other))


def test_everything_else_counts() -> None:
    for one, other in itertools.combinations(OTHER, 2):
        assert ours.plain(ast.parse(one)) != ours.plain(ast.parse(other)), (one, other)
