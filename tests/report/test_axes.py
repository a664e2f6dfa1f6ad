"""What was varied is named by the words that were typed, where these say it all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitexp.report.axes import DATA, Axes
from bitexp.report.compare import Comparison, compare
from bitexp.report.plots import label
from bitexp.report.runs import read_runs
from bitexp.report.tables import precision_table
from bitexp.report.wording import named

Write = Callable[..., Path]
Compared = Callable[[], Comparison]


@pytest.fixture
def compared(outputs: Path) -> Compared:
    """The comparison of all runs that were written."""

    def only() -> Comparison:
        (comparison,) = compare(read_runs([outputs])[0])
        return comparison

    return only


def parts(axes: Axes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return axes.setting, axes.variant, axes.hyperparameters


def test_models_are_named_by_the_word_that_was_typed(write_run: Write, compared: Compared) -> None:
    """The word of a default, which nobody types, is the name in its section."""
    for typed, name, hidden in (
        ([], "mlp", [16]),
        (["model=vit_mini"], "vit", [8]),
        (["model=cnn"], "cnn", [4]),
    ):
        for quantizer in ("full", "binary"):
            write_run(quantizer, 0, 0.5, typed=typed, model__name=name, model__hidden=hidden)
    comparison = compared()
    assert parts(comparison.axes) == (("model",), (), ())
    assert comparison.axes.choices == {"model": ("model.name", "model.hidden")}
    assert [row.cell.setting for row in comparison.rows[::2]] == [("cnn",), ("mlp",), ("vit_mini",)]
    assert label(comparison, comparison.rows[-1].cell) == "binary, model=vit_mini"


def test_what_is_typed_beside_a_choice_has_an_axis_of_its_own(write_run: Write, compared: Compared) -> None:
    for model, widths in (("mlp", [8, 16]), ("cnn", [8, 32])):
        for width in widths:
            typed = [f"model={model}", f"model.hidden=[{width}]"]
            write_run("full", 0, 0.5, typed=typed, model__name=model, model__hidden=[width])
    assert compared().axes.setting == ("model", "model.hidden")


def test_keys_that_a_word_does_not_explain_stay(write_run: Write, compared: Compared) -> None:
    """A YAML that was edited between two runs: the word is the same, and what it says is not."""
    for number, dropout in enumerate((0.1, 0.2)):
        write_run("full", 0, 0.5, typed=["model=mlp"], model__dropout=dropout, model__hidden=[8])
        write_run("full", number, 0.5, typed=["model=cnn"], model__name="cnn", model__hidden=[4])
    assert compared().axes.setting == ("model", "model.dropout")


def test_a_word_that_says_nothing_is_no_axis(write_run: Write, compared: Compared) -> None:
    """Two words for one thing, and a sweep, are not what runs differ in."""
    write_run("full", 0, 0.5, typed=["model=mlp", "+sweeps=one"], trainer__epochs=1)
    write_run("full", 0, 0.6, typed=["model=wide", "+sweeps=two"], trainer__epochs=2)
    assert parts(compared().axes) == (("trainer.epochs",), (), ())


def test_data_are_named_by_their_word_and_not_by_their_fingerprint(
    write_run: Write, compared: Compared
) -> None:
    for name in ("digits", "mnist"):
        write_run("full", 0, 0.5, typed=[f"data={name}"], data__name=name, made={"data": f"hash of {name}"})
    comparison = compared()
    assert comparison.axes.choices == {"data": (DATA, "data.name")}
    assert precision_table(comparison).texts()[0][:2] == ["full", "digits"]


def test_recipes_have_rows_whatever_they_change(write_run: Write, compared: Compared) -> None:
    """Each against the same baseline; a swept learning rate stays what a row shows the best of."""
    recipes = {
        None: {},
        "two_stage": {"scheduler__name": "two_stage", "optimizer__weight_decay": 0.1},
        "continual": {"quantizer__lambda_schedule": {"name": "step"}},
    }
    write_run("full", 0, 0.9, typed=["optimizer.lr=0.1"], optimizer__lr=0.1)
    for recipe, changes in recipes.items():
        for lr in (0.1, 0.2):
            typed = [f"optimizer.lr={lr}", *([f"+recipe={recipe}"] if recipe else [])]
            write_run("binary", 0, 0.5 + lr, typed=typed, optimizer__lr=lr, **changes)
    comparison = compared()
    assert parts(comparison.axes) == ((), ("recipe",), ("optimizer.lr",))
    assert [named(comparison, row) for row in comparison.rows] == [
        "full", "binary", "binary (recipe continual)", "binary (recipe two_stage)",
    ]  # fmt: skip
    assert [row.versus is not None for row in comparison.rows] == [False, True, True, True]
    assert [row.cell.hyperparameters for row in comparison.rows[1:]] == [(0.2,)] * 3


def test_a_recipe_that_changes_the_budget_too_leaves_the_others_comparable(
    write_run: Write, compared: Compared
) -> None:
    write_run("full", 0, 0.9)
    write_run("binary", 0, 0.5)
    write_run("binary", 0, 0.6, typed=["+recipe=continual"], quantizer__lambda_schedule={"name": "step"})
    write_run("binary", 0, 0.7, typed=["+recipe=half"], trainer__precision="bf16-true")
    comparison = compared()
    assert parts(comparison.axes) == (("trainer.precision",), ("recipe",), ())
    against = {
        row.cell.variant: row.versus is not None for row in comparison.rows if row.cell.precision != "full"
    }
    assert against == {(None,): True, ("continual",): True, ("half",): False}


def test_experiments_in_several_sizes_are_compared_at_equal_bytes(
    write_run: Write, compared: Compared
) -> None:
    """An experiment stands for a network and for data: only the latter keep rows apart."""
    for data in ("digits", "mnist"):
        for width in (8, 16):
            typed = [f"+experiment={data}_{width}"]
            settings = {"model__hidden": [width], "data__name": data, "made": {"data": data}}
            write_run("full", 0, 0.5, typed=typed, **settings)
    comparison = compared()
    assert parts(comparison.axes) == (("experiment",), (), ())
    assert comparison.pool_keys == (DATA,)
    assert sorted(comparison.pools) == [("digits",), ("mnist",)]


def test_a_key_that_came_later_is_no_axis_at_the_value_that_means_as_before(
    write_run: Write, compared: Compared
) -> None:
    old, new = write_run("full", 0), write_run("full", 1)
    write_run("full", 2, data__augment__rand_augment=7)
    config = old / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if "rand_augment" not in line]
    config.write_text("\n".join(lines) + "\n")
    assert "rand_augment: 0" in (new / "config.yaml").read_text()
    comparison = compared()
    assert parts(comparison.axes) == (("data.augment.rand_augment",), (), ())
    assert [row.cell.setting for row in comparison.rows] == [(0,), (7,)]


def test_what_is_kept_in_full_precision_has_a_row_and_is_no_seed(
    write_run: Write, compared: Compared
) -> None:
    """Two runs of one seed are no two seeds; what follows from the network is no axis beside it."""
    write_run("full", 0, 0.9)
    for kept, score in ((["head"], 0.7), (["head", "blocks.0"], 0.8)):
        write_run("binary", 0, score, typed=[f"quantizer.exclude={kept}"], quantizer__exclude=kept)
    comparison = compared()
    assert parts(comparison.axes) == ((), ("quantizer.exclude",), ())
    assert [row.cell.score.seeds for row in comparison.rows] == [1, 1, 1]
    assert {round(row.versus.difference, 6) for row in comparison.rows if row.versus} == {-0.2, -0.1}


def test_what_a_network_keeps_in_full_precision_is_no_axis_beside_it(
    write_run: Write, compared: Compared
) -> None:
    for name, kept in (("mlp", ["head"]), ("cnn", ["stem", "head"])):
        for quantizer in ("full", "binary"):
            keys = {"model__full_precision": kept, "quantizer__exclude": kept}
            write_run(quantizer, 0, 0.5, typed=[f"model={name}"], model__name=name, **keys)
    assert parts(compared().axes) == (("model",), (), ())
