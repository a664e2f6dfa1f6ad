"""`python -m bitexp ptq RUN`: what it is short for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import bitexp.__main__
from tests.support.training import Train


@pytest.fixture
def call(in_process: Any) -> Any:
    """`python -m bitexp WORDS...` in this process."""
    return in_process(bitexp.__main__.main, "bitexp")


def test_it_prints_the_long_form_and_makes_the_runs(call: Any, train: Train, outputs: Path) -> None:
    source = train("quantizer=full", "seed=1", "optimizer.lr=0.01").folder
    ended = call("ptq", source, "--bits", "2,4", "data.eval_batch_size=64")
    assert ended.code == 0, ended.err
    line = ended.out.splitlines()[0]
    assert line.startswith("python -m bitexp -m logger=csv ")
    assert line.endswith(
        f"'model.hidden=[16]' seed=1 +recipe=ptq start.from={source} quantizer=int "
        "quantizer.weights.bits=2,4 data.eval_batch_size=64"
    )
    assert "optimizer.lr" not in line
    made = [yaml.safe_load(path.read_text()) for path in outputs.glob("*/*/config.yaml")]
    weights = [config["quantizer"]["weights"] for config in made if config["trainer"]["max_steps"] == 0]
    assert sorted(part["bits"] for part in weights) == [2, 4]
    assert {config["seed"] for config in made} == {1}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "ptq=nowhere names nothing that is there"),
        (["RUN", "bits"], "unrecognized arguments: bits"),
        (["RUN", "data.eval_batch_szie=2"], "Did you mean 'data.eval_batch_size'"),
        (["PACKED"], "ptq takes the folder of a run"),
    ],
)
def test_bad_input_is_told(words: list[str], sentence: str, call: Any, train: Train) -> None:
    source = train("quantizer=full").folder
    places = {"RUN": source, "PACKED": source / "packed.safetensors"}
    ended = call("ptq", *(places.get(word, word) for word in words))
    assert ended.code == 2
    assert sentence in ended.err
