"""Composing outside of the entry point: the same config, errors in words, a job's own Hydra left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from bitexp.common.errors import UserError
from bitexp.config.compose import composed
from bitexp.config.paths import CONF


def test_it_is_what_the_entry_point_composes(compose_config: Callable[..., dict[str, Any]]) -> None:
    words = ("+experiment=vit_ternary", "quantizer=full", "seed=3")
    assert composed(words) == compose_config(*words)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("quantizer=trenary_mean", "unknown quantizer 'trenary_mean'. Did you mean 'ternary_mean'?"),
        ("trainer.epoch=3", "unknown key 'trainer.epoch'. Did you mean 'trainer.epochs'?"),
        ("experiment=vit_ternary", "write +experiment=vit_ternary to add it"),
        ("seed=${nowhere}", "Interpolation key 'nowhere' not found"),
    ],
)
def test_what_cannot_be_composed_is_a_user_error_in_words(word: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        composed([word])
    assert message in str(refusal.value)


def test_the_hydra_of_a_job_stays_as_it_was() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed(["seed=3"])
        assert compose("config", ["seed=4"]).seed == 4
