"""The choice of a kernel: `auto` takes the fastest that runs here, a name insists."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bitexp.kernels import KERNELS, choose_kernel
from bitexp.kernels.cpu import jit
from bitexp.kernels.reference import Reference
from bitexp.kernels.registry import PREFERENCE

ROOT = Path(__file__).parents[2]


class Absent(Reference):
    """A kernel that runs nowhere."""

    def unavailable(self, device: str) -> str | None:
        return f"no such chip beside {device}"


def test_auto_prefers_among_registered_kernels_and_ends_with_the_reference() -> None:
    assert set(PREFERENCE) <= set(KERNELS.names())
    assert PREFERENCE[-1] == "reference"


def test_auto_takes_the_first_that_runs_here() -> None:
    kernel, name, reason = choose_kernel("auto", "cpu")
    first = next(name for name in PREFERENCE if KERNELS.get(name).unavailable("cpu") is None)
    assert name == first
    assert kernel is KERNELS.get(first)
    assert reason.startswith("auto: the fastest that runs here")


def test_auto_says_why_faster_ones_were_passed_over() -> None:
    with KERNELS.temporarily(PREFERENCE[0], Absent()):
        _, name, reason = choose_kernel("auto", "cpu")
    assert name != PREFERENCE[0]
    assert f"{PREFERENCE[0]}: no such chip beside cpu" in reason


def test_where_nothing_runs_auto_says_why() -> None:
    with ExitStack() as stack:
        for name in PREFERENCE:
            stack.enter_context(KERNELS.temporarily(name, Absent()))
        with pytest.raises(ValueError, match=r"no kernel runs here: .*reference: no such chip"):
            choose_kernel("auto", "cpu")


@pytest.mark.parametrize("name", KERNELS.names())
def test_a_name_insists_or_fails_with_the_reason(name: str) -> None:
    for device in ("cpu", "cuda"):
        if reason := KERNELS.get(name).unavailable(device):
            with pytest.raises(ValueError, match=f"kernel={name} cannot run here") as refused:
                choose_kernel(name, device)
            assert reason in str(refused.value)
        else:
            assert choose_kernel(name, device) == (KERNELS.get(name), name, "asked for")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown kernel 'int_8'.*'int8'.*Known:.*reference"):
        choose_kernel("int_8", "cpu")


def test_without_numba_auto_goes_on_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bitexp.kernels.cpu.missing", lambda: "numba is not installed: pip install 'bitexp[cpu]'"
    )
    _, name, reason = choose_kernel("auto", "cpu")
    assert name != "cpu"
    assert reason.endswith("cpu: numba is not installed: pip install 'bitexp[cpu]'") or "; int8: " in reason
    with pytest.raises(ValueError, match=r"kernel=cpu cannot run here: .*pip install 'bitexp\[cpu\]'"):
        choose_kernel("cpu", "cpu")


@pytest.mark.parametrize(
    ("spec", "fault", "said"),
    [
        (None, None, "numba is not installed: pip install 'bitexp[cpu]'"),
        ("there", ImportError("Numba needs NumPy 2.5 or less"), "cannot be imported (Numba needs NumPy 2.5"),
        ("there", None, None),
    ],
)
def test_what_is_said_about_numba(
    monkeypatch: pytest.MonkeyPatch, spec: str | None, fault: Exception | None, said: str | None
) -> None:
    def importing(name: str, *rest: Any, **others: Any) -> Any:
        if name == "numba" and fault is not None:
            raise fault
        return original(name, *rest, **others)

    original = builtins.__import__
    monkeypatch.setattr(jit, "find_spec", lambda name: spec)
    monkeypatch.setattr(builtins, "__import__", importing)
    reason = jit.missing.__wrapped__()
    assert reason is None if said is None else said in str(reason)


def test_kernels_are_imported_without_numba() -> None:
    program = "import sys, bitexp.kernels; print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_without_a_folder_for_the_cache_code_is_compiled_all_the_same(tmp_path: Path) -> None:
    """Neither the module's folder nor the user's can be written."""
    module = tmp_path / "mine.py"
    module.write_text(
        "from bitexp.kernels.cpu.jit import compiled\n@compiled\ndef double(x):\n    return 2 * x\n"
    )
    (tmp_path / "__pycache__").write_text("")
    nowhere = str(tmp_path / "__pycache__" / "x")
    variables = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "NUMBA_CACHE_DIR": nowhere}
    environment = {**os.environ, **variables, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-c", "import mine; print(mine.double(21))"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "42\n", done.stderr
