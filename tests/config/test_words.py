"""Words of the command line."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from bitexp.config.words import quoted, switches_first


@given(st.text(st.characters(exclude_characters="\n$", codec="utf-8")))
def test_any_text_is_a_value_of_an_override(text):
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    assert override.value() == text


def test_switches_may_stand_between_overrides():
    assert switches_first(["a=1", "-m", "b=1,2", "--resolve"]) == ["-m", "--resolve", "a=1", "b=1,2"]
