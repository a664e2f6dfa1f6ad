"""The runs of a sweep, and the commands that make some of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitexp.claims.cells import cells, commands, count, tuning_cells
from bitexp.claims.definition import Sweep

SWEEP = Sweep.model_validate(
    {
        "words": ["data=digits"],
        "axes": {"quantizer": ["full_norm", "binary"], "recipe": {"plain": [], "two": ["+recipe=two_stage"]}},
        "tune": {"key": "optimizer.lr", "values": [0.01, 0.1], "seed": 9, "per": ["quantizer"]},
        "seeds": 2,
        "seconds": 1,
    }
)


def expanded(words: Sequence[str]) -> set[tuple[str, ...]]:
    """The runs of a multirun, as Hydra makes them of values with commas between."""
    keys, values = zip(*(word.split("=", 1) for word in words), strict=True)
    combinations = itertools.product(*(value.split(",") for value in values))
    return {tuple(f"{k}={v}" for k, v in zip(keys, one, strict=True)) for one in combinations}


@given(st.sets(st.tuples(*[st.integers(0, 2)] * 3)))
def test_commands_make_what_is_wanted_and_nothing_twice(wanted: set[tuple[int, int, int]]) -> None:
    runs = [tuple(f"{key}={value}" for key, value in zip("abc", cell, strict=True)) for cell in wanted]
    made = [run for words in commands(runs) for run in expanded(words)]
    assert sorted(made) == sorted(runs)


def test_a_whole_grid_is_one_command() -> None:
    grid = [(f"a={a}", f"seed={seed}") for a in (1, 2) for seed in (0, 1, 2)]
    assert commands([*grid, ("a=1", "b=2", "seed=0")]) == [["a=1,2", "seed=0,1,2"], ["a=1", "b=2", "seed=0"]]


def test_what_is_not_tuned_waits() -> None:
    plain, two = ("binary", "plain"), ("binary", "two")
    tuning = tuning_cells(SWEEP)
    assert tuning[plain] == tuning[two]  # `per` names the quantizer alone
    assert [cell.typed for cell in tuning[two]] == [
        ("data=digits", "quantizer=binary", f"optimizer.lr={lr}", "seed=9") for lr in (0.01, 0.1)
    ]
    found = list(cells(SWEEP, {two: "optimizer.lr=0.1", plain: None}))
    assert [(cell.place, cell.seed) for cell in found] == [(two, 0), (two, 1)]
    assert found[0].typed[2:] == ("+recipe=two_stage", "optimizer.lr=0.1", "seed=0")
    assert count(SWEEP) == 2 * 2 + 4 * 2


def test_an_axis_that_is_not_tuned_stands_where_it_is_said() -> None:
    tune = SWEEP.tune
    assert tune is not None
    sweep = SWEEP.model_copy(update={"tune": tune.model_copy(update={"at": {"recipe": "two"}})})
    assert tuning_cells(sweep)["binary", "plain"][0].place == ("binary", "two")


def test_words_are_kept_apart() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Sweep.model_validate({**SWEEP.model_dump(), "axes": {"quantizer": []}})
