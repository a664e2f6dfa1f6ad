"""Runs with a teacher in a report: a row for each kind of teacher, seeds together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitexp.report.axes import find_axes, value
from bitexp.report.runs import Problem, Run, read_run
from bitexp.report.teachers import with_teacher
from tests.support.training import Train

OWN = {"from": "outputs/x/0123456789", "run": None, "weights": "best", "identity": "0123456789"}


def flat(**changes: Any) -> dict[str, Any]:
    own = {f"distill.teacher.{key}": value for key, value in OWN.items()} | {"distill.teacher_seed": None}
    return {"seed": 0, **own, "distill.cache": False} | {
        f"distill.{key}": value for key, value in changes.items()
    }


@pytest.mark.parametrize(
    ("changes", "record", "word"),
    [
        ({}, {"quantizer": "full"}, "full 0123456789"),
        ({}, None, "0123456789"),
        ({"teacher.weights": "last"}, {"quantizer": ["?"]}, "['?'] 0123456789 last"),
        ({"teacher.run.quantizer": "full"}, {}, "full"),
        ({"teacher.run.quantizer": "full", "teacher.run.model.dim": 64}, {}, "full model.dim=64"),
        ({"teacher.run": "{}", "teacher_seed": 1}, {}, "itself seed 1"),
    ],
)
def test_a_teacher_is_a_word(changes: dict[str, Any], record: Any, word: str) -> None:
    found = with_teacher(flat(**changes), {"teacher": record})
    assert found == {"seed": 0, "distill.cache": False, "distill.teacher": word}
    assert with_teacher({"seed": 0, "distill": None}, {}) == {"seed": 0, "distill": None}


@pytest.mark.slow
def test_seeds_with_teachers_of_their_own_are_one_row(train: Train, outputs: Path) -> None:
    for seed in (0, 1):
        for recipe in ([], ["+recipe=self_distill"], ["+recipe=born_again"]):
            train(*recipe, f"seed={seed}", "trainer.epochs=1")
    found = [read_run(path.parent) for path in sorted(outputs.glob("*/*/result.json"))]
    assert not [problem for problem in found if isinstance(problem, Problem)]
    runs = [run for run in found if isinstance(run, Run) and run.precision != "full"]
    axes = find_axes(runs)
    assert (axes.setting, axes.variant, axes.hyperparameters) == ((), ("recipe",), ())
    assert sorted(str(value(run, "distill.teacher")) for run in runs) == sorted(
        2 * ["None", "full", "itself"]
    )
