"""Settings that run and that are known to spoil what they are used for are said once, with the reason."""

from __future__ import annotations

import re

import pytest

from bitexp.config.schema import read_settings
from bitexp.run.advice import advice
from bitexp.run.build import build
from tests.support.configs import SMALL, compose_config
from tests.support.training import Train

VIT = ("model=vit", "model.depth=1", "logger=csv")


def told(*words: str) -> list[str]:
    settings = read_settings(compose_config(*words))
    return advice(settings, build(settings))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*SMALL, "callbacks.ema_decay=0.9"), "an average are not an average of codes"),
        ((*SMALL, "quantizer=bnn"), "straight_through until they have grown"),
        ((*VIT, "quantizer=ternary_int4"), r"blocks.0.attn.proj and 1 more: their outliers made .* diverge"),
    ],
)
def test_what_is_known_to_break_is_said_with_its_reason(words: tuple[str, ...], said: str) -> None:
    (line,) = told(*words)
    assert re.search(said, line)


@pytest.mark.parametrize(
    "words",
    [
        SMALL,
        (*SMALL, "quantizer=full", "callbacks.ema_decay=0.9"),
        (*SMALL, "quantizer=bnn", "quantizer.estimator.at=0.1"),
        (*VIT, "quantizer=bitnet_a4_8"),
        (*VIT, "quantizer=bitnet_v2"),
    ],
    ids=str,
)
def test_nothing_is_said_where_nothing_is_wrong(words: tuple[str, ...]) -> None:
    assert told(*words) == []


def test_it_stands_in_the_header_once(train: Train) -> None:
    outcome = train("callbacks.ema_decay=0.9")
    assert (outcome.folder / "train.log").read_text().count("callbacks.ema_decay averages") == 1
