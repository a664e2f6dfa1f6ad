"""The identity of a run: every key that can change its result, and no other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from bitexp.config.schema import read_settings
from bitexp.track.folder import UNIMPORTANT, identity


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The config with another value for one key."""
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = {"was": node[last]}
    return config


def test_every_key_but_the_unimportant_is_part_of_the_identity(compose_config: Any) -> None:
    config = read_settings(compose_config()).model_dump(mode="json")
    reference = identity(config, "data")
    keys = set(leaves(config))
    assert len(keys) > 60
    unimportant = {key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in UNIMPORTANT)}
    assert {key for key in keys if identity(changed(config, key), "data") == reference} == unimportant
    assert identity(config, "other data") != reference


def test_unimportant_keys_exist(compose_config: Any) -> None:
    config = compose_config()
    sections = {name.rpartition(".")[0] for name in leaves(config)}
    assert all(name in set(leaves(config)) | sections | set(config) for name in UNIMPORTANT)


def test_the_identity_does_not_depend_on_the_order_of_keys(compose_config: Any) -> None:
    config = read_settings(compose_config()).model_dump(mode="json")
    assert identity(dict(reversed(config.items())), "data") == identity(config, "data")
