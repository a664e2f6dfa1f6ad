"""Sets of runs: tuned settings, and the table at the end of a multirun."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml
from omegaconf import OmegaConf
from rich.console import Console

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.files import write_json
from bitexp.config.tuned import apply_tuned
from bitexp.report.terminal import summarize

# the table


@pytest.fixture
def record(tmp_path: Path, write_run: Callable[..., Path]) -> Callable[..., None]:
    """Writes a job of a multirun, with its run; overrides go into its config."""
    numbers = iter(range(1000))

    def write(
        *overrides: str,
        accuracy: float | None = None,
        validated: float | None = None,
        better: str = "max",
        reason: str = "",
        **job: Any,
    ) -> None:
        number = next(numbers)
        run = tmp_path / "runs" / str(number)
        entry = {
            "overrides": list(overrides),
            "tuned": False,
            "reason": reason or None,
            "status": "failed",
            **job,
        }
        if accuracy is not None:
            typed = dict(word.partition("=")[::2] for word in overrides)
            quantizer, seed = typed.pop("quantizer", "ternary_mean"), int(typed.pop("seed", 0))
            changes = {key.replace(".", "__"): yaml.safe_load(value) for key, value in typed.items()}
            changes["tuned"] = entry["tuned"]
            write_run(
                quantizer, seed, accuracy, folder=run, validated=validated, better=better, typed=overrides,
                **changes,
            )  # fmt: skip
            entry |= {"status": "finished", "run": str(run), "trained": True, **job}
        (tmp_path / "jobs").mkdir(exist_ok=True)
        write_json(tmp_path / "jobs" / f"{number}.json", entry)

    return write


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines of the summary."""

    def summary() -> list[str]:
        capsys.readouterr()
        summarize(tmp_path, Report())
        return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return summary


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line)


def test_numbers_are_mean_and_deviation_over_seeds(record: Any, said: Any) -> None:
    accuracies = {"ternary_mean": [0.91, 0.935, 0.9525], "full": [0.96, 0.97, 0.965]}
    for quantizer, values in accuracies.items():
        for seed, value in enumerate(values):
            record(f"quantizer={quantizer}", f"seed={seed}", accuracy=value)
    header, _, full, ternary, caption, hint, count = said()
    assert cells(header) == [
        "precision", "test/accuracy", "vs full", "p (Holm)", "seeds", "lr", "weight decay", "lr x decay",
        "bits per weight", "body", "total", "energy per image, 45 nm", "ms per step",
    ]  # fmt: skip
    for line, name in ((full, "full"), (ternary, "ternary_mean")):
        values = np.array(accuracies[name])
        assert cells(line)[:2] == [name, f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"]
    apart = np.subtract(accuracies["ternary_mean"], accuracies["full"])
    p = scipy.stats.ttest_1samp(apart, 0).pvalue
    assert cells(ternary)[2:] == [
        f"{apart.mean():+.4f}", f"{p:.3f}", "3", "0.001", "0", "0.125", "1.63", "26.7 kB", "46.7 kB",
        "890 nJ", "12.5",
    ]  # fmt: skip
    assert caption.startswith("Best test/accuracy: full with 0.9650 ± 0.0050. Smallest weights: ternary_mean")
    assert "Mean ± standard deviation over seeds; all precisions at one shared setting." in caption
    assert hint.startswith("Plots and all settings: python -m bitexp report ")
    assert count.startswith("6 jobs: 6 trained, 0 finished before, 0 not finished. Index: ")


def test_a_margin_that_was_set_after_the_runs_is_told(record: Any, tmp_path: Path, capsys: Any) -> None:
    for seed in range(3):
        record("quantizer=full", f"seed={seed}", accuracy=0.9 + seed / 1000)
        record("quantizer=binary", f"seed={seed}", accuracy=0.9 + seed / 1001)
    for path in (tmp_path / "runs").glob("*/provenance.json"):
        attempts = json.loads(path.read_text())["attempts"]
        write_json(path, {"attempts": [attempt | {"margin": 0.005} for attempt in attempts]})
    summarize(tmp_path, Report(), 0.005)
    said = capsys.readouterr().out
    assert "equivalent" in said
    assert "was set after" not in said
    summarize(tmp_path, Report(), 0.1)
    assert "report.margin=0.1 was set after these runs" in capsys.readouterr().out


def test_full_precision_comes_first_then_its_control(record: Any, said: Any) -> None:
    for quantizer in ("binary", "ternary_mean", "full_norm", "full"):
        record(f"quantizer={quantizer}", "seed=0", accuracy=0.5, tuned=True)
    lines = said()
    assert [cells(line)[0] for line in lines[2:6]] == ["full", "full_norm", "binary", "ternary_mean"]
    assert cells(lines[2])[1] == "0.5000"
    assert "each precision at its tuned setting" in lines[6]


def test_other_swept_keys_are_columns_and_full_is_compared_within_them(record: Any, said: Any) -> None:
    for width, full, binary in (("[16,16]", 0.5, 0.4), ("[32]", 0.9, 0.7)):
        record(f"model.hidden={width}", "quantizer=full", accuracy=full)
        record(f"model.hidden={width}", "quantizer=binary", accuracy=binary)
    header, _, *rows = said()[:6]
    assert cells(header)[:2] == ["precision", "hidden"]
    assert [cells(row)[:4] for row in rows] == [
        ["full", "[16, 16]", "0.5000", "1"],
        ["binary", "[16, 16]", "0.4000", "-0.1000"],
        ["full", "[32]", "0.9000", "1"],
        ["binary", "[32]", "0.7000", "-0.2000"],
    ]


def test_a_grid_has_a_row_for_the_best_setting_of_each_precision(record: Any, said: Any) -> None:
    """Best by validation and mean over seeds, not by the test."""
    table = {  # (precision, lr): validation and test accuracy of two seeds
        ("full", "0.1"): [(0.5, 0.9), (0.6, 0.9)],
        ("full", "0.2"): [(0.7, 0.8), (0.5, 0.6)],
        ("full", "0.3"): [(0.1, 0.1), (0.3, 0.1)],
        ("binary", "0.1"): [(0.4, 0.5), (0.4, 0.5)],
        ("binary", "0.3"): [(0.9, 0.2), (0.3, 0.4)],
    }
    for (precision, lr), seeds in table.items():
        for seed, (validated, tested) in enumerate(seeds):
            words = (f"quantizer={precision}", f"optimizer.lr={lr}", f"seed={seed}")
            record(*words, accuracy=tested, validated=validated)
    lines = said()
    assert cells(lines[0]) == ["precision", "lr", "val/accuracy", "test/accuracy", "seeds", "lr x decay"]
    assert cells(lines[2]) == ["full", "0.1", "0.5500", "0.9000 ± 0.0000", "2", "0.125"]
    assert "each row is its best setting by validation" in lines[11]
    assert [cells(line)[:2] for line in lines[9:11]] == [
        ["full", "0.7000 ± 0.1414"],
        ["binary", "0.3000 ± 0.1414"],
    ]
    assert cells(lines[9])[3:8] == ["0.2", "0", "0.125", "3", "33%"]


def test_where_less_is_better_the_best_is_the_least(record: Any, said: Any) -> None:
    for lr, loss in (("0.1", 2.5), ("0.2", 1.5), ("0.3", 3.5)):
        record("quantizer=full", f"optimizer.lr={lr}", accuracy=loss, validated=loss, better="min")
    assert cells(said()[7])[:4] == ["full", "1.5000", "1", "0.2"]


def test_what_did_not_finish_is_listed_with_its_reason(record: Any, said: Any) -> None:
    record("seed=0", accuracy=0.5, trained=False)
    record("seed=1", reason="the training loss is nan at step 3", run="/outputs/x")
    record("optimizer.lr=-1", "seed=2", reason="optimizer.lr=-1 should be greater than 0")
    record("seed=3", status="stopped", reason="SIGINT")
    lines = said()
    assert "4 jobs: 0 trained, 1 finished before, 3 not finished." in lines[-4]
    assert lines[-3:] == [
        "failed: seed=1: the training loss is nan at step 3 (/outputs/x)",
        "failed: optimizer.lr=-1, seed=2: optimizer.lr=-1 should be greater than 0",
        "stopped: seed=3: SIGINT",
    ]


def test_nothing_but_failures_makes_no_table(record: Any, said: Any) -> None:
    record("seed=0", reason="no")
    assert len(said()) == 2


def test_runs_that_are_gone_or_garbage_are_left_out(record: Any, said: Any, tmp_path: Path) -> None:
    for seed in range(4):
        record("quantizer=full", f"seed={seed}", accuracy=0.5)
    (tmp_path / "runs" / "0" / "result.json").write_text("[]")
    (tmp_path / "runs" / "1" / "config.yaml").unlink()
    (tmp_path / "runs" / "2" / "config.yaml").write_text("!!python/object/apply:os.getcwd []")
    (tmp_path / "jobs" / "9.json").write_text("garbage")
    assert cells(said()[2])[:2] == ["full", "0.5000"]


def test_a_table_in_a_file_has_whole_cells(record: Any, said: Any) -> None:
    word = "a_value_with_quite_a_long_name" * 8
    record("seed=0", "data.limit=1", accuracy=0.5)
    record("seed=0", f"data.limit={word}", accuracy=0.5)
    assert cells(said()[3])[:3] == ["ternary_mean", word, "0.5000"]


@pytest.mark.slow
def test_the_summary_of_real_runs_is_that_of_their_files(command: Any, small: Any, outputs: Path) -> None:
    ended = command("-m", *small, "quantizer=full,binary", "seed=0,1")
    assert ended.code == 0, ended.err
    found: dict[str, list[float]] = {}
    for path in outputs.glob("*/*/result.json"):
        result = json.loads(path.read_text())
        found.setdefault(result["quantizer"], []).append(result["metrics"]["test/accuracy"])
    table = {cells(line.strip())[0]: cells(line.strip()) for line in ended.out.splitlines() if "±" in line}
    for quantizer, values in found.items():
        assert table[quantizer][1] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    again = command("-m", *small, "quantizer=full,binary", "seed=0,1")
    lines = again.out.splitlines()
    assert lines[0] == "4 of 4 cells were finished before"
    assert len([line for line in lines if line.strip()]) == 1 + 4 + 3


def test_a_reason_of_several_jobs_is_told_once(record: Any, said: Any) -> None:
    for seed in range(6):
        record("trainer.epochs=0", f"seed={seed}", reason="epochs=0 is too few")
    assert said()[1:] == ["failed: seed=0; seed=1; seed=2; seed=3 and 2 more: epochs=0 is too few"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_reads_on_a_narrow_screen(record: Any, tmp_path: Path, width: int) -> None:
    """Every cell whole, every line within the screen, sentences broken between words."""
    for precision in ("full", "ternary_mean", "ternary_median"):
        for seed in (0, 1):
            record(f"quantizer={precision}", f"seed={seed}", accuracy=0.5 + seed / 10)
    report, screen = Report(), io.StringIO()
    report.console = Console(file=screen, force_terminal=True, width=width, soft_wrap=True, color_system=None)
    summarize(tmp_path, report)
    lines = screen.getvalue().splitlines()
    assert max(len(line) for line in lines if tmp_path.name not in line) <= width
    rows = [cells(line.strip())[:3] for line in lines if "±" in line and "0." in line]
    assert rows[1:3] == [[name, "0.5500 ± 0.0707", "+0.0000"] for name in ("ternary_mean", "ternary_median")]
    text = " ".join(screen.getvalue().split())
    assert "Mean ± standard deviation over seeds; all precisions at one shared setting." in text
    if width == 80:
        assert "For a wider screen or in the report: " in text


# tuned settings


def hydra_with(folder: Path, quantizer: str) -> Any:
    sources = [SimpleNamespace(path=""), SimpleNamespace(path=str(folder))]
    return SimpleNamespace(
        runtime=SimpleNamespace(config_sources=sources, choices=SimpleNamespace(quantizer=quantizer))
    )


@pytest.fixture
def tuning(tmp_path: Path) -> Path:
    (tmp_path / "tuning").mkdir()
    table = {"binary": {"lr": 0.5, "weight_decay": 0.1}, "full": {"lr": 0.25}, "wrong": {"momentum": 1}}
    table |= {"full model=cnn seed=1": {"weight_decay": 0.3}, "full model=cnn": {"lr": 0.125}}
    (tmp_path / "tuning" / "mine.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    return tmp_path


@pytest.mark.parametrize(
    ("quantizer", "expected"),
    [("binary", (0.5, 0.1)), ("full", (0.25, 0.0)), ("ternary_mean", (0.001, 0.0))],
)
def test_a_quantizer_gets_its_own_setting(
    quantizer: str, expected: tuple[float, float], tuning: Path
) -> None:
    config = OmegaConf.create(
        {"tuned": True, "name": "mine", "optimizer": {"lr": 0.001, "weight_decay": 0.0}}
    )
    apply_tuned(config, hydra_with(tuning, quantizer), ["seed=1"])
    assert (config.optimizer.lr, config.optimizer.weight_decay) == expected
    config.tuned = False
    config.optimizer.lr = 7
    apply_tuned(config, hydra_with(tuning, quantizer), ["optimizer.lr=7"])
    assert config.optimizer.lr == 7


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["+model=cnn", "seed=1"], (0.125, 0.3)),
        (["model=cnn", "seed=2"], (0.125, 0.0)),
        (["model=vit", "seed=1"], (0.25, 0.0)),
    ],
)
def test_a_setting_may_be_for_further_choices(
    typed: list[str], expected: tuple[float, float], tuning: Path
) -> None:
    config = OmegaConf.create({"tuned": True, "name": "mine", "optimizer": {"lr": 1.0, "weight_decay": 0.0}})
    apply_tuned(config, hydra_with(tuning, "full"), typed)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == expected


@pytest.mark.parametrize(
    ("name", "quantizer", "typed", "message"),
    [
        ("mine", "full", ["optimizer.lr=1"], r"tuned=true sets what optimizer\.lr=1 sets"),
        ("mine", "full", ["++optimizer.weight_decay=1"], "leave out one of the two"),
        ("other", "full", [], r"needs a file tuning/other\.yaml"),
        ("mine", "wrong", [], "'momentum' is not a tuned setting. Known: lr, weight_decay"),
    ],
)
def test_what_is_wrong_with_tuning_is_told(
    name: str, quantizer: str, typed: list[str], message: str, tuning: Path
) -> None:
    config = OmegaConf.create({"tuned": True, "name": name, "optimizer": {"lr": 1.0, "weight_decay": 0.0}})
    with pytest.raises(UserError, match=message):
        apply_tuned(config, hydra_with(tuning, quantizer), typed)


def test_a_narrow_screen_keeps_what_tells_settings_apart(record: Any, tmp_path: Path) -> None:
    for lr in (0.001, 0.003):
        for decay in (0.0, 0.1):
            words = (f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}", "quantizer=ternary_median")
            record(*words, accuracy=0.9, validated=0.91)
    report, screen = Report(), io.StringIO()
    report.console = Console(file=screen, force_terminal=True, width=72, soft_wrap=True, color_system=None)
    summarize(tmp_path, report)
    rows = re.findall(r"ternary_median +(\S+) +(\S+) +0\.9100", screen.getvalue())
    assert rows == [("0.001", "0"), ("0.001", "0.1"), ("0.003", "0"), ("0.003", "0.1")]
