"""A run and the same made again: equal, within the band of its seeds, or different, and since when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bitexp.report.runs import Run, read_run
from bitexp.report.sameness import band, compare_again, surroundings
from tests.support.run_folders import WriteRun

METRICS = "step,epoch,metric,value\n1,0,train/loss,2.5\n1,0,time/step_ms,{pace}\n2,0,train/loss,{loss}\n"


def made(
    write_run: WriteRun,
    place: Path,
    seed: int,
    score: float,
    loss: float = 2.0,
    pace: float = 1.0,
    **changes: Any,
) -> Run:
    folder = write_run("binary", seed, score, folder=place, **changes)
    (folder / "metrics.csv").write_text(METRICS.format(loss=loss, pace=pace))
    (folder / "packed.safetensors").write_bytes(b"weights" if loss == 2.0 else b"others")
    (folder / "packages.txt").write_text(f"torch=={loss}\nnumpy==2.0\n")
    run = read_run(folder)
    assert isinstance(run, Run)
    return run


def test_equal_but_for_the_pace(write_run: WriteRun, tmp_path: Path) -> None:
    before = made(write_run, tmp_path / "a", 0, 0.9)
    found = compare_again(before, made(write_run, tmp_path / "b", 0, 0.9, pace=7.0))
    assert (found.word, found.step, found.band) == ("equal to the bit", None, None)


@pytest.mark.parametrize(
    ("score", "word"), [(0.902, "within the band of its seeds"), (0.95, "different"), (0.85, "different")]
)
def test_the_band_is_that_of_the_other_seeds(
    score: float, word: str, write_run: WriteRun, tmp_path: Path
) -> None:
    before = made(write_run, tmp_path / "a", 0, 0.9)
    others = [made(write_run, tmp_path / f"s{seed}", seed, 0.9 + 0.001 * seed) for seed in (1, 2, 3)]
    again = made(write_run, tmp_path / "b", 0, score, loss=1.5)
    found = compare_again(before, again, others)
    assert (found.word, found.step, found.metric, found.values) == (word, 2, "train/loss", (2.0, 1.5))
    assert found.band is not None
    assert found.band.seeds == 4
    assert surroundings(before, again) == ["torch 2.0 -> 1.5"]
    assert compare_again(before, again, others[:1]).word == "not the same bits"


def test_what_changes_no_result_sets_no_seed_apart(write_run: WriteRun, tmp_path: Path) -> None:
    before = made(write_run, tmp_path / "a", 0, 0.9)
    changes: list[dict[str, Any]] = [
        {"logger": {"wandb": {"mode": "online"}}},
        {"rerun": "older", "report__margin": 0.01},
        {"callbacks__checkpoint__keep": "none"},
        {"optimizer__lr": 0.5},
    ]
    others = [
        made(write_run, tmp_path / f"s{seed}", seed, 0.9 + 0.001 * seed, **change)
        for seed, change in enumerate(changes, start=1)
    ]
    found = compare_again(before, made(write_run, tmp_path / "b", 0, 0.902, loss=1.5), others)
    assert found.word == "within the band of its seeds"
    assert found.band is not None
    assert found.band.seeds == 4  # but for that of another learning rate


def test_a_band_holds_one_more_seed_as_often_as_it_says() -> None:
    """Over 4,000 samples of five values and one more."""
    rng = np.random.default_rng(0)
    held = 0
    for values in rng.normal(size=(4000, 6)):
        known = band(list(values[:5]))
        assert known is not None
        held += known.has(values[5])
    low, high = stats.binom.interval(0.999, 4000, 0.95)
    assert low <= held <= high
