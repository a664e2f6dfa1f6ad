"""A swept key that stands for every entry of a list: `quantizer.layers.each.weights.bits`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from bitexp.common.errors import UserError
from bitexp.sweep.spec import Compose, first_value, typed

EACH = "each"


def over_lists(space: Mapping[str, Any], fixed: Sequence[str], compose: Compose) -> dict[str, Any]:
    """The space with such a key for each entry of its list, as the config of a first trial has it.

    Args:
        fixed: the overrides that all trials share.

    Raises:
        UserError: there is no such list, or it is empty.
    """
    plain = {name: drawn for name, drawn in space.items() if EACH not in name.split(".")}
    if len(plain) == len(space):
        return dict(space)
    config = compose([*fixed, *typed({name: first_value(drawn) for name, drawn in plain.items()})])
    wide: dict[str, Any] = {}
    for name, drawn in space.items():
        wide |= dict.fromkeys(entries(name, config), drawn) if name not in plain else {name: drawn}
    return wide


def entries(name: str, config: DictConfig) -> list[str]:
    """The keys that one stands for."""
    before, _, after = name.partition(f".{EACH}.")
    chosen = OmegaConf.select(config, before.lstrip("+")) if after else None
    if not isinstance(chosen, ListConfig) or not chosen:
        raise UserError(
            f"'{name}' stands for every entry of a list, and there is none. A preset that "
            "`python -m bitexp allocate RUN` writes has a rule for every layer in quantizer.layers"
        )
    return [f"{before}.{place}.{after}" for place in range(len(chosen))]
