"""What a study found, in a table and an account; and the file of tuned settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.files import write_json, write_yaml
from bitexp.sweep.findings import StudySummary, print_findings
from bitexp.sweep.tuned import check_tunes, write_tuned

LR = FloatDistribution(0.0, 1.0)


@pytest.fixture
def trial(tmp_path: Path) -> Callable[..., Any]:
    """A trial with its run."""
    states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}

    def make(number: int, *values: float, status: str = "finished", **attributes: Any) -> Any:
        lr = (number + 1) / 10
        if status == "finished":
            run = tmp_path / f"run{number}"
            run.mkdir(exist_ok=True)
            metrics = {
                "test/accuracy": 0.5 + number / 100,
                "size/body_bytes": 900.0,
                "size/total_bytes": 26_700.0,
            }
            write_json(run / "result.json", {
                "status": status, "kind": None, "reason": None, "source": "x", "seconds": 1.0,
                "metrics": metrics, "headline": "test/accuracy", "better": "max", "lr_decay_sum": 0.125,
                "step_ms": 1.0,
            })  # fmt: skip
            write_yaml(run / "config.yaml", {})
            attributes["run"] = str(run)
        open_ended = status == "running"
        state = TrialState.RUNNING if open_ended else states[status]
        found = create_trial(
            state=state, values=list(values) or None, params={"optimizer.lr": lr},
            distributions={"optimizer.lr": LR}, user_attrs=attributes,
        )  # fmt: skip
        found.number = number
        return found

    return make


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines that are said of studies, each of which is its words and its trials."""

    def say(
        *studies: tuple[list[str], list[Any]],
        objectives: tuple[str, ...] = ("val/accuracy",),
        directions: Any = ("maximize",),
        storage: str = "here.journal",
    ) -> list[str]:
        found = [
            StudySummary(
                "mine", f"tune-{n}", words, storage, tmp_path, list(objectives), directions, 9, trials
            )
            for n, (words, trials) in enumerate(studies)
        ]
        print_findings(found, Report())
        return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return say


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line)


def test_the_best_trial_of_each_study_is_a_row(trial: Any, said: Any) -> None:
    full = [trial(0, 0.7), trial(1, 0.9), trial(2, status="pruned")]
    binary = [trial(3, 0.6), trial(4, 0.5)]
    lines = said((["quantizer=full"], full), (["quantizer=binary"], binary))
    assert cells(lines[0]) == [
        "quantizer", "optimizer.lr", "val/accuracy", "test", "lr x decay", "body", "total", "trials",
        "pruned", "trial", "run",
    ]  # fmt: skip
    assert cells(lines[2]) == [
        "full", "0.2", "0.9000", "0.5100", "0.125", "900 B", "26.7 kB", "3", "1", "1", "run1"
    ]  # fmt: skip
    assert cells(lines[3])[:4] == ["binary", "0.4", "0.6000", "0.5300"]
    assert lines[4] == "The best trial of each study by val/accuracy; the test set was not used to choose."
    assert lines[5] == "tune-0: 2 finished, 1 pruned; budget 9. here.journal"
    assert lines[7] == "Open it with: optuna-dashboard here.journal"


def test_where_less_is_better_the_best_is_the_least(trial: Any, said: Any) -> None:
    trials = [trial(0, 0.7), trial(1, 0.2), trial(2, 0.9)]
    lines = said(([], trials), objectives=("val/loss",), directions=("minimize",))
    assert cells(lines[2])[:2] == ["0.2", "0.2000"]


def test_of_several_objectives_the_front_is_shown(trial: Any, said: Any) -> None:
    points = [(0.7, 100.0), (0.9, 300.0), (0.6, 200.0), (0.8, 250.0), (0.8, 260.0)]
    trials = [trial(0, status="failed", reason="no"), *(trial(n, *p) for n, p in enumerate(points, start=1))]
    lines = said(
        ([], trials), objectives=("val/accuracy", "size/total_bytes"), directions=("maximize", "minimize")
    )
    assert cells(lines[0])[:3] == ["optimizer.lr", "val/accuracy", "size/total_bytes"]
    assert [cells(line)[1:3] for line in lines[2:5]] == [
        ["0.7000", "100 B"], ["0.8000", "250 B"], ["0.9000", "300 B"]
    ]  # fmt: skip
    assert (
        lines[5]
        == "The Pareto front: no other trial is better in one objective without being worse in another."
    )


def test_what_failed_is_told_with_its_reason_unless_it_went_well_later(trial: Any, said: Any) -> None:
    trials = [
        trial(0, status="failed", reason="the training loss is nan"),
        trial(1, status="failed", reason="RuntimeError: once"),
        trial(2, 0.5, retry_of=1),
        trial(3, status="running"),
    ]
    lines = said(([], trials))
    assert lines[-3] == "tune-0: 1 finished, 1 failed, 1 open; budget 9. here.journal"
    assert lines[-2] == "failed: 0: optimizer.lr=0.1: the training loss is nan"


def test_nothing_done_makes_no_table(said: Any) -> None:
    lines = said(([], []), storage="postgresql://me:secret@host/db")
    assert lines == ["tune-0: nothing done; budget 9. postgresql://me:***@host/db"]


def test_a_run_that_has_gone_since_leaves_its_cells_empty(trial: Any, said: Any, tmp_path: Path) -> None:
    (tmp_path / "run0" / "result.json").unlink() if (found := trial(0, 0.5)) else None
    lines = said(([], [found]))
    assert cells(lines[2]) == ["0.1", "0.5000", "1", "0", "0", "run0"]


def test_optuna_agrees_on_the_best(trial: Any) -> None:
    trials = [trial(n, value) for n, value in enumerate((0.3, 0.8, 0.8, 0.1))]
    found = StudySummary("m", "s", [], "j", Path(), ["val/accuracy"], ["maximize"], 4, trials)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    assert found.best is not None
    assert found.best.value == study.best_value


# tuned settings


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., str]:
    """The file of an experiment after a precision was tuned."""
    path = tmp_path / "conf" / "tuning" / "mine.yaml"
    sources = [
        SimpleNamespace(schema="pkg", path="hydra.conf"),
        SimpleNamespace(schema="file", path=str(tmp_path / "none")),
        SimpleNamespace(schema="file", path=str(tmp_path / "conf")),
    ]

    def write(before: str | None, precision: str = "full", **params: Any) -> str:
        path.parent.parent.mkdir(exist_ok=True)
        if before is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(before)
        chosen = params or {"lr": 0.0123456, "weight_decay": 1e-5}
        drawn = {f"optimizer.{key}": value for key, value in chosen.items()}
        assert write_tuned("mine", precision, {**drawn, "model.dim": 3}, sources) == path
        return path.read_text()

    return write


LINE = "full: {lr: 0.0123, weight_decay: 1.0e-05}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, LINE),
        ("", LINE),
        ("full: {lr: 0.5}\n", LINE),
        ("# c\n\nfull: {lr: 0.5}  # d\nbinary: {lr: 1}", f"# c\n\n{LINE}binary: {{lr: 1}}\n"),
        ("full_norm: {lr: 1}\n", f"full_norm: {{lr: 1}}\n{LINE}"),
        (
            "binary: {lr: 1}\nfull model.dim=8: {lr: 2}\n",
            f"binary: {{lr: 1}}\n{LINE}full model.dim=8: {{lr: 2}}\n",
        ),
        ("full:\n  lr: 0.5\n  weight_decay: 0.1\nbinary: {lr: 1}\n", f"{LINE}binary: {{lr: 1}}\n"),
    ],
)
def test_a_tuned_setting_takes_its_place_and_leaves_the_other_lines(
    before: str | None, after: str, tune: Any
) -> None:
    assert tune(before) == after
    table = yaml.safe_load(after)
    assert table["full"] == {"lr": 0.0123, "weight_decay": 1e-5}


def test_what_is_written_is_read_back_as_numbers(tune: Any) -> None:
    """YAML 1.1 takes 1e-05 for a word."""
    for value in (1e-5, 1e-4, 0.1, 0, 1, 123456.0, 1e-12):
        written = yaml.safe_load(tune("", lr=value))["full"]["lr"]
        assert isinstance(written, float), written
        assert written == pytest.approx(value, rel=5e-3)


def test_a_value_that_was_one_of_a_list_may_be_a_word(tune: Any) -> None:
    assert yaml.safe_load(tune("", lr="0.05")) == {"full": {"lr": 0.05}}


TYPED = ["+experiment=a", "seed=3", "trainer.epochs=1", "logger=csv", "kernel=cpu", "+task.mixup=0.1"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("full: {lr: 1}\n", "full: {lr: 1}\nfull task.mixup=0.1 trainer.epochs=1: {lr: 0.5}\n"),
        (
            "full: {lr: 1}\nfull task.mixup=0.1 trainer.epochs=1: {lr: 2}\nbinary: {lr: 3}\n",
            "full: {lr: 1}\nfull task.mixup=0.1 trainer.epochs=1: {lr: 0.5}\nbinary: {lr: 3}\n",
        ),
    ],
)
def test_what_was_typed_beside_a_search_is_kept_with_its_setting(
    before: str, after: str, tmp_path: Path
) -> None:
    source = SimpleNamespace(schema="file", path=str(tmp_path))
    path = tmp_path / "tuning" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(before)
    assert write_tuned("mine", "full", {"optimizer.lr": 0.5}, [source], TYPED) == path
    assert path.read_text() == after


def test_a_word_that_no_line_can_hold_is_told() -> None:
    with pytest.raises(UserError, match=r"cannot write data.name='a b' into a line of conf/tuning"):
        check_tunes(["optimizer.lr"], ["data.name='a b'"])


def test_nothing_to_keep_or_nowhere_to_keep_it_is_told(tmp_path: Path) -> None:
    source = SimpleNamespace(schema="file", path=str(tmp_path))
    with pytest.raises(UserError, match=r"needs a sweep over optimizer\.lr or optimizer\.weight_decay"):
        write_tuned("mine", "full", {"model.dim": 3}, [source])
    with pytest.raises(UserError, match="no folder of configs can be written: give --config-dir"):
        write_tuned("mine", "full", {"optimizer.lr": 3}, [SimpleNamespace(schema="pkg", path="x")])


def test_sweeps_that_end_at_once_lose_no_line(tmp_path: Path) -> None:
    """Several workers, or studies of several precisions, write into one file."""
    source, names = SimpleNamespace(schema="file", path=str(tmp_path)), [f"q{n}" for n in range(24)]

    def write(name: str) -> Path:
        return write_tuned("mine", name, {"optimizer.lr": 0.5}, [source])

    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(write, names))
    assert sorted(yaml.safe_load(path.read_text())) == sorted(names)
