"""`python -m bitexp allocate RUN`: a preset that trains, and is as large as was said."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import bitexp.__main__
from tests.support.training import Train

WORDS = ("--budget", "size=60%", "--bits", "1.58,4,8", "--samples", "64", "quantizer.exclude=[]")


@pytest.fixture
def call(in_process: Any) -> Any:
    """`python -m bitexp WORDS...` in this process."""
    return in_process(bitexp.__main__.main, "bitexp")


def test_the_preset_is_evaluated_and_trained_by_what_is_printed(
    call: Any, train: Train, outputs: Path, tmp_path: Path
) -> None:
    source = train("quantizer=full").folder
    ended = call("allocate", source, *WORDS, "--by", "loss", "--name", "mine", "--config-dir", tmp_path)
    assert ended.code == 0, ended.err
    preset = yaml.safe_load((tmp_path / "quantizer" / "mine.yaml").read_text())
    assert preset["name"] == "mine"
    assert [rule["match"] for rule in preset["layers"]] == ["layers.0", "head"]
    (said,) = re.findall(r"size=60%: (\S+ \S+) \(", ended.out)
    commands = re.findall(r"python -m bitexp (--config-dir.*)", ended.out)
    assert len(commands) == 2
    for command in commands:
        ended = call(*shlex.split(command))
        assert ended.code == 0, ended.err
        assert f"body {said}" in ended.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--budget", "size=1%"], "is the least. Attainable are"),
        (["--bits", "4,9"], "bits=9 must be 1.58"),
        (["--name", "int"], "is another preset"),
    ],
)
def test_what_cannot_be_with_a_run_is_told(words: list[str], sentence: str, call: Any, train: Train) -> None:
    source = train("quantizer=full").folder
    ended = call("allocate", source, *(["--budget", "size=50%"] * ("--budget" not in words)), *words)
    assert ended.code == 2
    assert sentence in ended.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--by", "hessian"], "unknown sensitivity 'hessian'"),
        (["--bits", "4"], "at least two numbers"),
        (["--bits", "4,a"], "at least two numbers"),
        (["--bits", "4,inf"], "at least two numbers above 0"),
        (["--samples", "0"], "--samples 0 must be at least 1"),
        (["quantizer"], "is no word of a run"),
        (["--budget", "size=50"], "is no amount of size"),
        ([], "names nothing that is there"),
    ],
)
def test_bad_words_are_told(words: list[str], sentence: str, call: Any) -> None:
    ended = call("allocate", "nowhere", *(["--budget", "size=50%"] * ("--budget" not in words)), *words)
    assert ended.code == 2
    assert sentence in ended.err
