"""Compiled code on disk, damaged and whole, and what numba is told by its variables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from bitexp.kernels.cpu.jit import compiled, missing

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

from bitexp.kernels.cpu import cache
from bitexp.kernels.cpu.dots import supported
from bitexp.kernels.cpu.layer import overload


def twice(x: float) -> float:
    return 2 * x


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where code is kept; nothing has been said of it."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    cache.say_once.cache_clear()
    return tmp_path


def files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.nbc"))


def test_code_is_kept_and_found(folder: Path) -> None:
    assert compiled(twice)(4) == 8
    (file,) = files(folder)
    before = file.stat().st_mtime_ns
    again = compiled(twice)
    assert again(4) == 8
    assert sum(again.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]
    assert file.stat().st_mtime_ns == before
    assert compiled(twice)(0.5) == 1.0  # other types, another file
    assert len(files(folder)) == 2


def test_what_killed_processes_have_left_goes(folder: Path) -> None:
    compiled(twice)(4)
    (file,) = files(folder)
    old, young = (file.with_name(f"{file.name[:-4]}{name}.part") for name in ("old", "young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    compiled(twice)(0.5)
    assert [path.name for path in folder.rglob("*.part")] == [young.name]


@pytest.mark.parametrize("damage", [b"", b"damaged", None])
def test_damaged_code_is_made_anew_and_said_once(folder: Path, damage: bytes | None) -> None:
    for value in (1, 0.5):
        compiled(twice)(value)
    whole = {file: file.read_bytes() for file in files(folder)}
    for file, content in whole.items():
        half = len(content) // 2
        changed = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        file.write_bytes(changed if damage is None else damage)
    with pytest.warns(RuntimeWarning, match="is damaged and made anew") as said:
        results = [compiled(twice)(value) for value in (1, 0.5)]
    assert results == [2, 1.0]
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(twice)(1) == 2  # from disk again


def test_code_of_other_sources_or_another_numba_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(twice)(1)
    monkeypatch.setattr("bitexp.kernels.cpu.cache.sources", lambda: "others")
    again = compiled(twice)
    again(1)
    assert not again.stats.cache_hits  # type: ignore[attr-defined]
    assert len(files(folder)) == 2


def test_a_disk_that_cannot_be_written_ends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitexp.kernels.cpu.cache.os.replace", full)
    assert compiled(twice)(3) == 6
    assert not list(folder.rglob("*.*nbc"))
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "/proc/nothing")
    assert compiled(twice)(3) == 6


PROGRAM = """
from bitexp.kernels import choose_kernel
print(choose_kernel("auto", "cpu")[1:])
try:
    choose_kernel("cpu", "cpu")
except ValueError as error:
    print("refused:", error)
"""


def test_a_numba_that_may_not_compile_is_passed_over_and_refused() -> None:
    variables = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True
    )
    auto, refused = ended.stdout.splitlines()
    assert "('cpu'" not in auto
    assert "cpu: numba is told not to compile (NUMBA_DISABLE_JIT)" in auto
    assert refused.startswith("refused: kernel=cpu cannot run here: numba is told not to compile")


def test_code_of_several_processes_is_told_apart_by_its_names() -> None:
    """Each process numbers what it compiles from one on, and code of several comes together from the disk."""
    names = [overload(supported()[0], bits).fndesc.mangled_name for bits in (1, 2, 4, 8)]
    assert len({re.sub(r"v\d+", "", name) for name in names}) == 4
