"""Numbers, paths and values as people write them: one form for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitexp.common.format import amount, counted, duration, energy_text, path_text, size, value_text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, None, "null"),
        (True, None, "true"),
        (1, 3, "1"),
        (0.123456, None, "0.123456"),
        (0.123456, 3, "0.123"),
        (1e-5, 4, "1e-05"),
        ("ternary_mean", 3, "ternary_mean"),
        ([1, 2], None, "[1, 2]"),
    ],
)
def test_values_are_as_one_would_type_them(value: Any, digits: int | None, text: str) -> None:
    assert value_text(value, digits) == text


def test_amounts_bytes_and_time_spans() -> None:
    assert [amount(n) for n in (136_010, 5_360_000)] == ["136,010", "5.36 M"]
    assert [size(n) for n in (999, 26_688, 17_700_000, 2e9)] == ["999 B", "26.7 kB", "17.7 MB", "2.00 GB"]
    assert [duration(s) for s in (52, 185, 3753)] == ["52 s", "3:05", "1:02:33"]


def test_what_rounds_to_a_thousand_is_one_of_the_next_unit() -> None:
    assert [size(n) for n in (999.7, 999_960, 999_970_000)] == ["1.0 kB", "1.0 MB", "1.00 GB"]
    assert [energy_text(j) for j in (9.994e-7, 9.999e-7, 9.9999e-10)] == ["999 nJ", "1 µJ", "1 nJ"]


def test_a_path_below_the_current_folder_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_text(tmp_path / "outputs" / "a") == "outputs/a"
    assert path_text(Path("/elsewhere")) == "/elsewhere"


def test_one_of_a_thing_has_no_plural() -> None:
    assert [counted(n, "step") for n in (0, 1, 1293)] == ["0 steps", "1 step", "1,293 steps"]
    assert [counted(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]
