"""What is compared with what: axes, settings, the baseline, and what the captions admit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitexp.common.format import energy_text
from bitexp.report.axes import DATA
from bitexp.report.compare import Comparison, compare
from bitexp.report.energy import PICOJOULES, energy
from bitexp.report.runs import read_runs
from bitexp.report.stats import holm, paired
from bitexp.report.tables import bytes_table, precision_table, setting_table
from bitexp.report.wording import answer, caption
from bitexp.report.write import robustness

Write = Callable[..., Path]


@pytest.fixture
def compared(outputs: Path) -> Callable[[], Comparison]:
    """The comparison of all runs that were written."""

    def only() -> Comparison:
        (comparison,) = compare(read_runs([outputs])[0])
        return comparison

    return only


def test_a_setting_that_follows_from_the_precision_is_no_axis(write_run: Write, compared: Any) -> None:
    for quantizer, lr in (("full", 0.003), ("binary", 0.01)):
        for seed in range(3):
            write_run(quantizer, seed, 0.9 + seed / 100, optimizer__lr=lr, tuned=True)
    comparison = compared()
    assert (comparison.axes.setting, comparison.axes.variant, comparison.axes.hyperparameters) == ((), (), ())
    assert [row.cell.precision for row in comparison.rows] == ["full", "binary"]
    assert [row.cell.config("optimizer.lr") for row in comparison.rows] == [[0.003], [0.01]]
    assert "each precision at its tuned setting" in caption(comparison)


def test_settings_drawn_at_random_keep_all_their_axes(write_run: Write, compared: Any) -> None:
    """No learning rate occurs twice, so that the decay follows from it; it was swept all the same."""
    for number in range(6):
        lr, decay = 0.001 * (number + 1), 0.01 * (number * 5 % 6)
        typed = [f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}"]
        settings = {"optimizer__lr": lr, "optimizer__weight_decay": decay}
        write_run("binary", 0, 0.5, typed=typed, **settings)
    assert compared().axes.hyperparameters == ("optimizer.lr", "optimizer.weight_decay")


def test_keys_that_go_with_a_choice_are_no_axes_of_their_own(write_run: Write, compared: Any) -> None:
    for hidden, dropout in (([16], 0.1), ([32], 0.2)):
        for quantizer in ("full", "binary"):
            write_run(quantizer, 0, 0.5, model__hidden=hidden, model__dropout=dropout)
    comparison = compared()
    assert comparison.axes.setting == ("model.hidden",)
    assert [row.versus is None for row in comparison.rows] == [True, False, True, False]


@pytest.mark.parametrize(
    ("key", "axis"),
    [("trainer__epochs", "trainer.epochs"), ("data__limit", "data.limit"), ("task__mixup", "task.mixup")],
)
def test_budget_and_data_are_never_hidden_by_the_precision(
    key: str, axis: str, write_run: Write, compared: Any
) -> None:
    write_run("full", 0, 0.95, **{key: 60})
    write_run("binary", 0, 0.9, **{key: 5})
    write_run("full_norm", 0, 0.93, **{key: 60})
    comparison = compared()
    assert comparison.axes.setting == (axis,)
    against = {row.cell.precision: row.versus for row in comparison.rows}
    assert against["binary"] is None
    assert against["full_norm"].difference == pytest.approx(-0.02)
    assert f"only where {axis} agree" in caption(comparison)
    assert "Rows without a difference have no full run" in caption(comparison)


def test_other_data_are_another_comparison(write_run: Write, compared: Any) -> None:
    write_run("full", 0, 0.95, made={"data": "one"})
    write_run("binary", 0, 0.9, made={"data": "two"})
    comparison = compared()
    assert comparison.axes.setting == (DATA,)
    assert all(row.versus is None for row in comparison.rows)
    assert [column.title for column in precision_table(comparison).columns][:2] == ["precision", "data"]


def test_options_of_the_quantizer_are_rows_against_the_same_baseline(write_run: Write, compared: Any) -> None:
    write_run("full", 0, 0.95)
    for granularity, score in (("tensor", 0.9), ("channel", 0.92)):
        write_run("ternary_mean", 0, score, quantizer__weights__granularity=granularity)
    comparison = compared()
    assert comparison.axes.variant == ("quantizer.weights.granularity",)
    assert [round(row.versus.difference, 6) for row in comparison.rows[1:]] == [-0.03, -0.05]


def test_the_chosen_setting_is_the_best_validated_of_those_with_most_seeds(
    write_run: Write, compared: Any
) -> None:
    write_run("binary", 0, 0.99, validated=0.99, optimizer__lr=0.1)  # one lucky seed
    for lr, validated, score in ((0.2, 0.8, 0.7), (0.3, 0.9, 0.6), (0.4, 0.7, 0.9)):
        for seed in range(2):
            write_run("binary", seed, score, validated=validated, optimizer__lr=lr)
    comparison = compared()
    (row,) = comparison.rows
    assert row.cell.hyperparameters == (0.3,)
    assert len(row.cells) == 4
    assert row.robust == 1 / 4
    assert "by validation, among those with the most seeds" in caption(comparison)


def test_settings_that_diverged_are_not_within_the_tolerance(write_run: Write, compared: Any) -> None:
    """Of three learning rates one is lost: robust are two of three, and not two of two."""
    lost = {"status": "failed", "kind": "diverged", "reason": "the loss is nan"}
    for lr in (0.1, 0.2):
        write_run("binary", 0, 0.9, optimizer__lr=lr)
    for seed in (0, 1):
        write_run("binary", seed, result=lost, optimizer__lr=0.5)
    write_run("binary", 1, result=lost, optimizer__lr=0.2)  # whose first seed has finished
    write_run("binary", 0, result=lost, optimizer__lr=0.7, trainer__epochs=99)  # of another budget
    write_run("full", 0, 0.9, optimizer__lr=0.1)
    write_run("full", 0, result={**lost, "kind": "crash"}, optimizer__lr=0.2)
    comparison = compared()
    assert [(row.settings, row.robust) for row in comparison.rows] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    assert "settings that diverged are not: binary 67% of 3" in robustness(comparison)


def test_without_validation_the_choice_says_what_it_is(write_run: Write, compared: Any) -> None:
    for lr, score in ((0.2, 0.7), (0.3, 0.8)):
        write_run("binary", 0, score, optimizer__lr=lr)
    comparison = compared()
    assert comparison.rows[0].cell.hyperparameters == (0.3,)
    assert "by test/accuracy itself, which is optimistic, because nothing was held out" in caption(comparison)


@pytest.mark.parametrize(("settings", "how"), [(1, "by validation, among"), (2, "by validation, or where")])
def test_rows_without_validation_say_nothing_of_those_with_it(
    settings: int, how: str, write_run: Write, compared: Any
) -> None:
    """A row with one setting chose nothing."""
    for lr in (0.1, 0.2):
        write_run("binary", 0, 0.9, validated=lr, optimizer__lr=lr, data__val_size=0.1)
    for lr in (0.1, 0.2)[:settings]:
        write_run("binary", 0, 0.9, optimizer__lr=lr, data__val_size=0)
    comparison = compared()
    assert f"its best setting {how}" in caption(comparison)
    assert comparison.chosen_by_metric.startswith("val/accuracy")
    assert ("test/accuracy" in comparison.chosen_by_metric) == (settings == 2)


def test_p_values_are_corrected_over_the_whole_table(write_run: Write, compared: Any) -> None:
    draw = np.random.default_rng(0)
    scores = {q: draw.normal(0.9, 0.02, 4) for q in ("full", "binary", "ternary_mean", "ternary_median")}
    for quantizer, values in scores.items():
        for seed, value in enumerate(values):
            write_run(quantizer, seed, float(value))
    comparison = compared()
    base = dict(enumerate(scores["full"]))
    expected = [paired(dict(enumerate(scores[row.cell.precision])), base) for row in comparison.rows[1:]]
    assert [row.versus.p for row in comparison.rows[1:]] == [test.p for test in expected]
    assert [row.versus.p_holm for row in comparison.rows[1:]] == holm([test.p for test in expected])
    assert "paired t test" in caption(comparison)
    assert "With so few seeds" in caption(comparison)


def test_one_seed_is_called_what_it_is(write_run: Write, compared: Any) -> None:
    write_run("full", 0, 0.9)
    write_run("binary", 0, 0.8)
    comparison = compared()
    values = precision_table(comparison).values()[1]
    assert (values["difference"], values["p"], values["std"]) == (pytest.approx(-0.1), None, None)
    assert "A single seed cannot test a difference." in caption(comparison)


def test_other_sources_and_other_lengths_are_told(write_run: Write, compared: Any) -> None:
    write_run("full", 0, 0.9, result={"steps": 50})
    write_run("binary", 0, 0.8, result={"source": "other"})
    said = caption(compared())
    assert "same number of steps" in said
    assert "different versions of bitexp" in said


def test_experiments_are_apart(write_run: Write, outputs: Path) -> None:
    write_run("full", 0, 0.9, name="a")
    write_run("binary", 0, 0.8, name="b")
    assert [comparison.name for comparison in compare(read_runs([outputs])[0])] == ["a", "b"]


def test_equal_bytes_compares_the_best_that_fits(write_run: Write, compared: Any) -> None:
    table = {("full", 16): (0.8, 4000), ("full", 32): (0.9, 16000), ("binary", 32): (0.85, 500)}
    table |= {("binary", 64): (0.95, 2000)}
    for (quantizer, width), (score, size) in table.items():
        path = write_run(quantizer, 0, score, model__hidden=[width])
        file = path / "result.json"
        file.write_text(
            file.read_text().replace('"size/total_bytes": ', f'"size/total_bytes": {size}.0, "x": ')
        )
    rows = bytes_table(compared()).values()
    assert [(row["bytes"], row["full"], row["binary"]) for row in rows] == [
        (500, None, 0.85),
        (2000, None, 0.95),
        (4000, 0.8, 0.95),
        (16000, 0.9, 0.95),
    ]


def test_equal_bytes_needs_two_sizes(write_run: Write, compared: Any) -> None:
    write_run("full", 0, 0.9)
    write_run("binary", 0, 0.8)
    assert bytes_table(compared()) is None


def test_the_front_is_over_rows(write_run: Write, compared: Any) -> None:
    for quantizer, score in (("full", 0.9), ("full_norm", 0.8), ("binary", 0.7), ("ternary_mean", 0.6)):
        write_run(quantizer, 0, score)
    comparison = compared()
    (chosen,) = comparison.fronts([row.cell.metric("size/total_bytes") for row in comparison.rows])
    assert [comparison.rows[i].cell.precision for i in chosen] == ["binary", "full"]


def test_every_number_of_the_table_is_that_of_the_files(write_run: Write, compared: Any) -> None:
    write_run("full", 0, 0.9)
    write_run("binary", 0, 0.8)
    row = precision_table(compared()).values()[1]
    assert row["test/accuracy"] == 0.8
    assert row["bits_per_weight"] == 8 * 26_688 / 131_072
    assert (row["body_bytes"], row["total_bytes"], row["step_ms"]) == (26_688, 46_688, 12.5)
    assert row["joules 45 nm"] == pytest.approx(1e-12 * (1e5 * 0.9 + 2e5 * 3.7 + 2e6 * 0.03))


def test_energy_of_a_layer_is_that_of_the_paper() -> None:
    """A full-precision multiply-accumulate at 45 nm: 0.9 + 3.7 pJ; nothing without counts."""
    counts = {"cost/fp32_add": 1.0, "cost/fp32_mul": 1.0, "cost/int8_add": 0.0, "cost/int8_mul": 0.0}
    assert energy(counts, "45 nm") == pytest.approx(4.6e-12)
    assert energy(counts, "7 nm") == pytest.approx(1.69e-12)
    assert energy({}) is None
    assert set(PICOJOULES["7 nm"]) == set(PICOJOULES["45 nm"])


@pytest.mark.parametrize(
    ("joules", "text"), [(4.6e-12, "4.6 pJ"), (8.69e-7, "869 nJ"), (1.03e-5, "10.3 µJ"), (2.0, "2 J")]
)
def test_joules_for_people(joules: float, text: str) -> None:
    assert energy_text(joules) == text


def test_settings_are_listed_in_the_order_of_their_numbers(write_run: Write, compared: Any) -> None:
    for lr in (0.1, 0.0001, 0.01, 0.02):
        write_run("full", 0, 0.9, optimizer__lr=lr)
    assert [row["optimizer.lr"] for row in setting_table(compared()).values()] == [0.0001, 0.01, 0.02, 0.1]


def test_lists_of_widths_are_listed_by_their_numbers_too(write_run: Write, compared: Any) -> None:
    for widths in ([16, 32], [128], [8, 16], [8, 9]):
        write_run("full", 0, 0.9, model__widths=widths)
    rows = precision_table(compared()).values()
    assert [row["model.widths"] for row in rows] == ["[8, 9]", "[8, 16]", "[16, 32]", "[128]"]


def test_rows_of_other_budgets_and_networks_are_never_compared(write_run: Write, compared: Any) -> None:
    """Neither in the headline, nor on a Pareto front, nor at equal bytes."""
    for epochs, worse in ((10, 0.0), (20, 0.3)):
        for quantizer, score in (("full", 0.9), ("binary", 0.95)):
            write_run(quantizer, 0, score - worse, trainer__epochs=epochs)
    write_run("full", 0, 0.99, model__name="resnet18", result={"metrics": {"test/accuracy": 0.99,
              "size/total_bytes": 4e7, "size/body_bytes": 1.0}})  # fmt: skip
    comparison = compared()
    assert len(comparison.groups) == 3
    assert answer(comparison) == (
        "Rows that differ in model, epochs are not compared with each other. Best test/accuracy in 2 groups "
        "of several precisions: binary in 2."
    )
    fronts = comparison.fronts([row.cell.metric("size/total_bytes") for row in comparison.rows])
    assert [[comparison.rows[i].cell.precision for i in front] for front in fronts] == [
        ["binary"], ["binary"], ["full"],
    ]  # fmt: skip
    assert bytes_table(comparison) is None


def test_networks_in_several_sizes_are_compared_at_equal_bytes_within_a_budget(
    write_run: Write, compared: Any
) -> None:
    for epochs in (10, 20):
        for hidden, factor in (([16], 1), ([32], 2)):
            metrics = {"test/accuracy": 0.1 * factor + epochs / 100, "size/total_bytes": 1000.0 * factor}
            write_run("full", 0, model__hidden=hidden, trainer__epochs=epochs, result={"metrics": metrics})
    comparison = compared()
    assert [len(places) for places in comparison.pools.values()] == [2, 2]
    table = bytes_table(comparison)
    assert table is not None
    assert table.values() == [
        {"trainer.epochs": 10, "bytes": 1000.0, "full": pytest.approx(0.2)},
        {"trainer.epochs": 10, "bytes": 2000.0, "full": pytest.approx(0.3)},
        {"trainer.epochs": 20, "bytes": 1000.0, "full": pytest.approx(0.3)},
        {"trainer.epochs": 20, "bytes": 2000.0, "full": pytest.approx(0.4)},
    ]


def test_the_smallest_file_is_that_on_disk(write_run: Write, compared: Any) -> None:
    for quantizer, count in (("full", 4000), ("binary", 1000)):
        (write_run(quantizer) / "packed.safetensors").write_bytes(b"x" * count)
    assert "Smallest file: binary with 1.0 kB, 4.0 times smaller than full." in answer(compared())
