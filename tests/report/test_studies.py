"""Studies of Optuna: what a journal says, and importance over a grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from bitexp.__main__ import main
from bitexp.report.compare import compare
from bitexp.report.runs import read_runs
from bitexp.report.studies import grid_importance, read_studies

KINDS = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "decay": FloatDistribution(0.0, 0.1)}


@pytest.fixture
def journal(outputs: Path) -> Path:
    """A study whose value depends on the learning rate alone, with a pruned and a failed trial."""
    path = outputs / "made_up" / "studies" / "tune.journal"
    path.parent.mkdir(parents=True)
    study = optuna.create_study(
        study_name="<b>tune</b>", storage=JournalStorage(JournalFileBackend(str(path))), direction="maximize"
    )
    for number in range(40):
        params = {"lr": 10 ** (-4 + 3 * ((number * 7) % 40) / 40), "decay": 0.1 * ((number * 11) % 40) / 40}
        study.add_trial(create_trial(params=params, distributions=KINDS, value=-abs(params["lr"] - 0.01)))
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(create_trial(params={"lr": 0.1, "decay": 0.0}, distributions=KINDS, state=state))
    return path


def test_a_study_in_numbers(journal: Path, outputs: Path) -> None:
    before = journal.read_bytes()
    ((study,), problems) = read_studies([outputs])
    assert problems == []
    assert (study.name, study.states) == ("<b>tune</b>", {"complete": 40, "pruned": 1, "fail": 1})
    assert float(study.best["lr"]) == pytest.approx(0.01, rel=0.1)
    assert study.importance["lr"] > 0.8
    assert journal.read_bytes() == before


def test_a_damaged_journal_is_a_problem_and_no_end(journal: Path, outputs: Path) -> None:
    (journal.parent / "other.journal").write_text("{garbage\nmore\n")
    studies, problems = read_studies([outputs])
    assert len(studies) == 1
    assert "cannot be read" in problems[0].reason


def test_few_trials_or_many_objectives_have_no_importance(outputs: Path) -> None:
    outputs.mkdir(parents=True)
    storage = JournalStorage(JournalFileBackend(str(outputs / "a.journal")))
    few = optuna.create_study(study_name="few", storage=storage)
    few.add_trial(create_trial(params={"lr": 0.1, "decay": 0.0}, distributions=KINDS, value=1.0))
    optuna.create_study(study_name="two", storage=storage, directions=["minimize", "maximize"])
    studies, _ = read_studies([outputs])
    assert [(s.name, s.value, s.importance) for s in studies] == [("few", 1.0, {}), ("two", None, {})]


def test_importance_over_a_grid(write_run: Callable[..., Path], outputs: Path) -> None:
    for lr in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        for decay in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
            write_run("full", 0, lr / 2 + decay / 100, optimizer__lr=lr, optimizer__weight_decay=decay)
    (found,) = compare(read_runs([outputs])[0])
    shares = grid_importance(found)
    assert list(shares) == ["optimizer.lr", "optimizer.weight_decay"]
    assert shares["optimizer.lr"] > 2 * shares["optimizer.weight_decay"]
    assert sum(shares.values()) == pytest.approx(1)


def test_where_settings_do_not_differ_nothing_explains_it(
    write_run: Callable[..., Path], outputs: Path
) -> None:
    for number in range(25):
        keys = {"optimizer__lr": 0.01 * (1 + number % 5), "optimizer__weight_decay": 0.1 * (number // 5)}
        write_run("binary", 0, 0.5, validated=0.5, **keys)
    (found,) = compare(read_runs([outputs])[0])
    assert grid_importance(found) == {}


def test_the_page_shows_the_study(
    journal: Path, write_run: Callable[..., Path], outputs: Path, in_process: Any
) -> None:
    write_run("full", 0, 0.9)
    assert in_process(main, "bitexp")("report", outputs).code == 0
    page = (outputs / "report" / "index.html").read_text()
    assert "Study &lt;b&gt;tune&lt;/b&gt;" in page
    assert "40 complete, 1 fail, 1 pruned trials" in page
    assert (outputs / "report" / "plots" / "study-0.svg").exists()
