"""The same numbers in a notebook: tidy frames and labelled data sets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

import bitexp
from bitexp.common.errors import UserError
from bitexp.report.compare import compare
from bitexp.report.runs import read_runs
from bitexp.report.stats import holm
from bitexp.report.tables import precision_table

Write = Callable[..., Path]


@pytest.fixture
def grid(write_run: Write, outputs: Path) -> Path:
    for quantizer, base in (("full", 0.9), ("binary", 0.8)):
        for lr in (0.001, 0.01):
            for seed in range(3):
                write_run(quantizer, seed, base + lr + seed / 100, validated=base + lr, optimizer__lr=lr)
    return outputs


def test_results_have_a_row_for_each_run(grid: Path, write_run: Write) -> None:
    (write_run("binary", 9) / "result.json").unlink()
    frame = bitexp.results(grid)
    assert len(frame) == 13
    assert frame["status"].value_counts().to_dict() == {"finished": 12, "unfinished": 1}
    row = frame[(frame["precision"] == "full") & (frame["optimizer.lr"] == 0.01) & (frame["seed"] == 2)]
    assert row["test/accuracy"].item() == pytest.approx(0.93)
    assert row["joules 45 nm"].item() > row["joules 7 nm"].item() > 0
    assert row["commit"].item().startswith("c0ffee")
    assert Path(row["path"].item()).is_dir()
    assert bitexp.results().equals(frame)  # the same folder by default


def test_a_grid_has_an_axis_for_each_swept_key(grid: Path) -> None:
    data = bitexp.grid(grid)
    assert dict(data.sizes) == {"precision": 2, "optimizer.lr": 2, "seed": 3}
    mean = data["test/accuracy"].sel(precision="binary").mean("seed")
    assert mean.sel({"optimizer.lr": 0.01}).item() == pytest.approx(0.82)
    assert data.attrs == {"experiment": "made_up", "headline": "test/accuracy"}


def test_cells_without_a_run_are_missing(grid: Path, write_run: Write) -> None:
    write_run("ternary_mean", 0, 0.5, optimizer__lr=0.01)
    ternary = bitexp.grid(grid)["test/accuracy"].sel(precision="ternary_mean")
    assert int(np.isfinite(ternary).sum()) == 1


def test_comparisons_have_effect_interval_and_corrected_p(write_run: Write, outputs: Path) -> None:
    draw = np.random.default_rng(1)
    scores = {q: draw.normal(0.9, 0.01, 5) for q in ("full", "binary", "ternary_mean")}
    for quantizer, values in scores.items():
        for seed, value in enumerate(values):
            write_run(quantizer, seed, float(value))
    frame = bitexp.comparisons(outputs).set_index("precision")
    tests = {q: scipy.stats.ttest_rel(scores[q], scores["full"]) for q in ("binary", "ternary_mean")}
    corrected = holm([test.pvalue for test in tests.values()])
    for (quantizer, test), p in zip(tests.items(), corrected, strict=True):
        row = frame.loc[quantizer]
        low, high = test.confidence_interval(0.95)
        assert row["p"] == pytest.approx(test.pvalue)
        assert row["p_holm"] == pytest.approx(p)
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high))
        apart = scores[quantizer] - scores["full"]
        assert row["effect"] == pytest.approx(apart.mean() / apart.std(ddof=1))
    assert np.isnan(frame.loc["full", "difference"])


def test_they_are_those_of_the_report(grid: Path) -> None:
    (found,) = compare(read_runs([grid])[0])
    expected = [row["test/accuracy"] for row in precision_table(found).values()]
    assert bitexp.comparisons(grid)["mean"].tolist() == expected


def test_several_experiments_ask_for_a_name(grid: Path, write_run: Write) -> None:
    write_run("full", 0, 0.5, name="other")
    assert set(bitexp.comparisons(grid)["experiment"]) == {"made_up", "other"}
    with pytest.raises(UserError, match=r"several experiments: name one, experiment='made_up'"):
        bitexp.grid(grid)
    with pytest.raises(UserError, match=r"Did you mean 'other'\?"):
        bitexp.grid(grid, experiment="othr")
    assert dict(bitexp.grid(grid, experiment="other").sizes) == {"precision": 1, "seed": 1}


def test_nothing_finished_is_told(write_run: Write, outputs: Path) -> None:
    (write_run() / "result.json").unlink()
    assert bitexp.comparisons(outputs).empty
    with pytest.raises(UserError, match="none of these runs is finished"):
        bitexp.grid(outputs)


@pytest.mark.parametrize("name", ["results", "grid", "comparisons"])
def test_without_pandas_the_extra_is_named(name: str, grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas: pip install 'bitexp\[notebook\]'"):
        getattr(bitexp, name)(grid)


def test_importing_bitexp_imports_nothing_else() -> None:
    program = (
        "import sys, typing, __future__; old = set(sys.modules); import bitexp; print({*sys.modules} - old)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'bitexp'}"
    assert {"results", "grid", "comparisons"} <= set(dir(bitexp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bitexp.nothing


def test_the_notebook_of_a_real_run(train: Any, outputs: Path) -> None:
    outcome = train()
    (row,) = bitexp.results(outputs).to_dict("records")
    assert row["test/accuracy"] == outcome.result["metrics"]["test/accuracy"]
    assert row["size/body_weights"] == outcome.result["metrics"]["size/body_weights"]
