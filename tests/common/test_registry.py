"""Registries: names for things, each name once, and a thing that is there for a while."""

from __future__ import annotations

from contextlib import suppress

import pytest

from bitexp.common.registry import Registry, UnknownName


@pytest.fixture
def colours() -> Registry[int]:
    """A registry with two colours."""
    registry = Registry[int]("colour")
    registry.register("red")(1)
    registry.register("blue")(2)
    return registry


def test_a_name_is_taken_once(colours: Registry[int]) -> None:
    with pytest.raises(ValueError, match="colour 'red' is registered already"):
        colours.register("red")(3)
    assert colours.get("red") == 1


def test_an_unknown_name_is_told_with_the_nearest_and_all_known(colours: Registry[int]) -> None:
    with pytest.raises(UnknownName, match=r"unknown colour 'bleu'.*blue.*Known: blue, red"):
        colours.get("bleu")


@pytest.mark.parametrize("name", ["green", "red"])
def test_an_entry_is_there_temporarily_also_in_place_of_another(colours: Registry[int], name: str) -> None:
    with suppress(ZeroDivisionError), colours.temporarily(name, 7) as entry:
        assert colours.get(name) == entry == 7
        assert colours.get("blue") == 2
        raise ZeroDivisionError
    assert colours.names() == ["blue", "red"]
    assert colours.get("red") == 1
