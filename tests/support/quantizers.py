"""Quantizers as the YAML has them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hypothesis import strategies as st

from bitexp.config.schema import QuantizerChoice
from bitexp.quant import Quantizer
from tests.support.configs import compose_config


class MakeQuantizer(Protocol):
    """Builds the quantizer of conf/quantizer/PRESET.yaml, with some of its keys changed."""

    def __call__(self, preset: str, **changes: object) -> Quantizer: ...


@functools.cache
def choice(preset: str) -> QuantizerChoice:
    """What `quantizer=PRESET` composes to."""
    return QuantizerChoice.model_validate(compose_config(f"quantizer={preset}")["quantizer"])


def make_quantizer(preset: str, **changes: object) -> Quantizer:
    """The quantizer of a preset, with some of its keys changed; the options of a part one by one."""
    section = copy.deepcopy(choice(preset).config)
    for key, change in changes.items():
        section[key] = merged(section.get(key), change)
    return Quantizer.of(section)


def merged(old: Any, change: object) -> object:
    """A section with other options; another part, or a word, takes its place whole."""
    if isinstance(old, Mapping) and isinstance(change, Mapping) and change.get("name") in (None, old["name"]):
        return {**old, **change}
    return change


def fits(preset: str, changes: Mapping[str, Any]) -> bool:
    """Whether a preset can be changed so."""
    try:
        make_quantizer(preset, **changes)
    except ValueError:
        return False
    return True


FITTING: dict[str, st.SearchStrategy[Mapping[str, Any]]] = {}


def fitting(preset: str, changes: Sequence[Mapping[str, Any]]) -> st.SearchStrategy[Mapping[str, Any]]:
    """Those of some changes that go together with a preset; found out once, since every example asks."""
    key = f"{preset} {changes}"
    if key not in FITTING:
        FITTING[key] = st.sampled_from([change for change in changes if fits(preset, change)])
    return FITTING[key]
