"""The words of the one door: told from the overrides of a run, completed, nearest match for a typo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import bitexp.__main__
from bitexp.cli.commands import COMMANDS, is_word

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(in_process: Any) -> Any:
    """`python -m bitexp WORDS...` in this process."""
    return in_process(bitexp.__main__.main, "bitexp")


@pytest.mark.parametrize("word", COMMANDS)
def test_each_command_has_its_main_and_a_line_of_help(word: str) -> None:
    assert is_word(word)
    assert callable(import_module(COMMANDS[word].module).main)
    assert COMMANDS[word].help


@pytest.mark.parametrize("typed", ["seed=1", "+experiment=x", "++a=1", "~seed", "-m", "--help", "a.b=[1, 2"])
def test_overrides_and_flags_are_no_words(typed: str) -> None:
    assert not is_word(typed)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("reprot", "unknown command 'reprot'. Did you mean 'report'? Known: report, generate, "),
        ("quantizer", "unknown command 'quantizer'. Known: "),
        ("", "unknown command ''. Known: "),
    ],
)
def test_an_unknown_word_is_answered_with_the_closest(call: Any, typed: str, answer: str) -> None:
    ended = call(typed, "seed=1")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"bitexp: {answer}")
    assert "Settings of a run are written key=value" in ended.err


def test_the_version_is_ours(call: Any) -> None:
    assert call("--version").out == f"bitexp {bitexp.__version__}\n"


@pytest.mark.parametrize("word", ["report", "bench"])
def test_a_room_with_a_command_can_be_run_by_its_name_too(word: str) -> None:
    done = [
        subprocess.run([sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True)
        for words in (["bitexp", word], [f"bitexp.{word}"])
    ]
    assert done[0].returncode == 0
    assert done[0].stdout == done[1].stdout != ""


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("bitexp ", {*COMMANDS, "quantizer=", "seed="}, {"+seed="}),
        ("bitexp re", {"report", "recipe=", "rerun="}, {"generate"}),
        ("python -m bitexp re", {"report", "rerun="}, {"generate"}),
        ("bitexp quantizer=ternary", {"quantizer=ternary_mean", "quantizer=ternary_median"}, {"report"}),
        ("bitexp seed=1 re", {"rerun="}, {"report"}),
        ("bitexp report out", set(), {"report", "rerun="}),
    ],
)
def test_a_shell_is_told_words_groups_and_keys(
    line: str, some: set[str], none: set[str], call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    ended = call("-sc", "query=bash")
    assert ended.code == 0
    answered = set(ended.out.split())
    assert answered >= some
    assert not answered & none
    assert some or not answered


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_bash_completes_as_the_help_says(tmp_path: Path, call: Callable[..., Any]) -> None:
    """The script named in --help, in a real bash, with a program called bitexp on the PATH, and a python."""
    assert 'eval "$(bitexp -sc install=bash)"' in call("--help").out
    program = tmp_path / "bitexp"
    body = f"import sys; sys.argv[0] = {str(program)!r}; from bitexp.__main__ import main; main()"
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(0o755)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    script = """
        eval "$(bitexp -sc install=bash)"
        complete -p bitexp python >&2
        try() {
            COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDS=($1) COMPREPLY=()
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _bitexp
            echo "$1: ${COMPREPLY[@]}"
        }
        try "bitexp gen"
        try "python -m bitexp gen"
        try "python -m pip gen"
    """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["/bin/bash", "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stderr.count("-F _bitexp") == 2
    answers = ["bitexp gen: generate", "python -m bitexp gen: generate", "python -m pip gen: "]
    assert done.stdout.splitlines() == answers


@pytest.mark.parametrize("words", ["--version", "--help"])
def test_an_answer_that_cannot_be_written_is_no_success(words: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bitexp", words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        2,
        "bitexp: the output could not be written: No space left on device\n",
    )
