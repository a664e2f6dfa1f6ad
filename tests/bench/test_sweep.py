"""The benchmark of a sweep: what a cell cannot do without, and the table beside the plain loop."""

from __future__ import annotations

from typing import Any

import pytest

from bitexp.bench import sweeps
from bitexp.bench.sweeps import PLAIN, Parts, Sweep, parts_of, sweeps_table, timed
from bitexp.common.errors import UserError
from bitexp.tasks import Task


def test_the_parts_of_a_cell_are_its_steps_validations_and_two_tests(
    monkeypatch: pytest.MonkeyPatch, small: Any
) -> None:
    modes: list[bool] = []
    forward = Task.forward

    def note(self: Task, inputs: Any) -> Any:
        modes.append(self.training)
        return forward(self, inputs)

    monkeypatch.setattr(Task, "forward", note)
    monkeypatch.setattr(sweeps, "importing", lambda module: 1.5)
    parts = parts_of([*small, "trainer.epochs=2", "trainer.train_batches=3", "trainer.validate_every=1"])
    assert parts.imports == 1.5
    assert parts.steps > 0
    assert parts.evaluation > 0
    assert sum(modes) == 6
    assert len(modes) == 6 + 4, "one batch of each part"


def test_the_table_has_shares_of_the_cpu_time() -> None:
    sweep = Sweep(seconds=36.0, cpu=40.0, imports=2)
    table = sweeps_table({"joblib": sweep}, Parts(2.0, 5.0, 1.0), Parts(1.0, 3.0, 0.0), cells=4)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("joblib", "400", "360", "10.00", "10%", "50%", "10%", "30%"),
        (PLAIN, "", "900", "4.00", "25%", "75%", "0%", "0%"),
    ]


def test_a_grid_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="no_such_module"):
        timed(["-c", "import no_such_module"])
    seconds, cpu = timed(["-c", "sum(range(10**6))"])
    assert seconds > 0
    assert cpu > 0
