"""Keys of a sweep that stand for every entry of a list."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution

from bitexp.common.errors import UserError
from bitexp.sweep.each import over_lists

BITS, SEEDS = CategoricalDistribution([2, 8]), CategoricalDistribution([0, 1])


def compose(overrides: Sequence[str]) -> DictConfig:
    assert list(overrides) == ["quantizer=mine", "seed=0"]
    return OmegaConf.create({"quantizer": {"layers": [{"bits": 4}, {"bits": 4}], "stages": []}})


def test_a_key_is_made_for_each_entry() -> None:
    wide = over_lists({"quantizer.layers.each.bits": BITS, "seed": SEEDS}, ["quantizer=mine"], compose)
    assert wide == {"quantizer.layers.0.bits": BITS, "quantizer.layers.1.bits": BITS, "seed": SEEDS}


def test_other_keys_compose_nothing() -> None:
    assert over_lists({"seed": SEEDS}, [], lambda _: pytest.fail("composes")) == {"seed": SEEDS}


@pytest.mark.parametrize(
    "key", ["quantizer.stages.each.bits", "quantizer.each.bits", "quantizer.layers.each"]
)
def test_what_has_no_entries_is_told(key: str) -> None:
    with pytest.raises(UserError, match=f"'{key}' stands for every entry of a list"):
        over_lists({key: BITS, "seed": SEEDS}, ["quantizer=mine"], compose)
