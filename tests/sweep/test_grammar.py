"""The search space in Hydra's own override grammar."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bitexp.cli.app import register_plugins
from bitexp.common.errors import UserError

register_plugins()
from hydra_plugins.bitexp.sweeper import distribution, key  # noqa: E402


class Groups:
    """Stands for Hydra's loader of configs, which knows the options of a group."""

    def get_group_options(self, name: str, results_filter: Any) -> list[str]:
        return {"quantizer": ["binary", "full", "full_norm", "ternary_mean"]}[name]


def read(text: str) -> Any:
    (override,) = OverridesParser.create(config_loader=Groups()).parse_overrides([text])  # type: ignore[arg-type]
    assert override.is_sweep_override()
    return distribution(override)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=interval(0.5, 2.5)", FloatDistribution(0.5, 2.5)),
        ("a=interval(1e-4, 1)", FloatDistribution(1e-4, 1.0)),
        ("a=interval(1, 9)", FloatDistribution(1.0, 9.0)),
        ("a=int(interval(1, 9))", IntDistribution(1, 9)),
        ("a=int(interval(start=1, end=9))", IntDistribution(1, 9)),
        ("a=tag(log, interval(1e-4, 1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("a=tag(log, int(interval(1, 64)))", IntDistribution(1, 64, log=True)),
        ("a=int(tag(log, interval(1, 64)))", IntDistribution(1, 64, log=True)),
        ("a=int(interval(-3, -1))", IntDistribution(-3, -1)),
        ("a=range(1, 4)", IntDistribution(1, 3)),
        ("a=range(5)", IntDistribution(0, 4)),
        ("a=range(0, 9, 4)", IntDistribution(0, 8, step=4)),
        ("a=range(16, 65, step=16)", IntDistribution(16, 64, step=16)),
        ("a=range(9, 0, -4)", IntDistribution(1, 9, step=4)),
        ("a=range(3, 1, -1)", IntDistribution(2, 3)),
        ("a=range(2)", IntDistribution(0, 1)),
        ("a=range(0.0, 1.0, 0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("a=range(0, 1, 0.5)", FloatDistribution(0.0, 0.5, step=0.5)),
        ("a=choice(1, 2, 4)", CategoricalDistribution([1, 2, 4])),
        ("a=1,2,4", CategoricalDistribution([1, 2, 4])),
        ("a=0.1,0.2", CategoricalDistribution([0.1, 0.2])),
        ("a=choice(true, false)", CategoricalDistribution([True, False])),
        ("a=choice(one, two)", CategoricalDistribution(["one", "two"])),
        ("quantizer=glob(*)", CategoricalDistribution(["binary", "full", "full_norm", "ternary_mean"])),
        ("quantizer=glob(full*)", CategoricalDistribution(["full", "full_norm"])),
        ("quantizer=glob(*, exclude=[full*])", CategoricalDistribution(["binary", "ternary_mean"])),
        ("a=sort(3, 1, 2)", CategoricalDistribution([1, 2, 3])),
        ("+a=interval(0, 3)", FloatDistribution(0.0, 3.0)),
    ],
)
def test_what_is_typed_is_what_is_drawn_from(text: str, expected: Any) -> None:
    assert read(text) == expected


def test_a_range_of_decimals_has_the_points_that_one_reads() -> None:
    assert read("a=range(0.1, 0.35, 0.1)") == FloatDistribution(0.1, 0.3, step=0.1)
    assert read("a=range(1.0, 0.0, -0.25)") == FloatDistribution(0.25, 1.0, step=0.25)


def test_a_shuffled_range_or_choice_has_the_same_values() -> None:
    assert sorted(read("a=shuffle(range(1, 5))").choices) == [1, 2, 3, 4]
    assert sorted(read("a=shuffle(choice(a, b, c))").choices) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("a=[16],[16,16]", ["[16]", "[16,16]"]),
        ("a={b:1},{b:2}", ["{b:1}", "{b:2}"]),
        ("a=null,1", ["null", 1]),
        ("a='x y','x,y'", None),
    ],
)
def test_what_is_drawn_is_typed_for_the_job_as_it_was(text: str, spelled: list[Any] | None) -> None:
    """A job's words are key=value again, so that values come out of Hydra's grammar as they went in."""
    choices = read(text).choices
    if spelled is not None:
        assert [str(choice) for choice in choices] == [str(value) for value in spelled]
    parser = OverridesParser.create()
    (typed,) = parser.parse_overrides([text])
    for choice, value in zip(choices, typed.value().list, strict=True):
        (word,) = parser.parse_overrides([f"a={choice}"])
        assert not word.is_sweep_override()
        assert word.value() == getattr(value, "text", value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=tag(lin, interval(0, 1))", "a: tag lin is unknown. Known: log"),
        ("a=tag(log, interval(0.0, 1.0))", "a: .*low"),
        ("a=interval(2, 1)", "a: .*low"),
        ("a=tag(log, range(1, 9))", r"a: range\(\) cannot be logarithmic"),
        ("a=range(5, 1)", r"'a=range\(5, 1\)' has no values"),
        ("~a=1,2", "'~a=1,2' cannot sweep over a key that it deletes"),
    ],
)
def test_what_cannot_be_drawn_from_is_told(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(text)


@pytest.mark.parametrize("text", ["a.b=1,2", "+a.b=1,2", "++a.b=1,2", "quantizer=a,b", "+db@x=a,b"])
def test_a_key_keeps_its_plus_and_its_package(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([text])
    assert key(override) == text.partition("=")[0]
