"""A class whose numbers change says so by its `revision`; the files that compute are kept as committed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from bitexp.quant import WEIGHTS
from bitexp.track.code import committed, hashes
from tests.support.revisions import FILE, classes, problem

KEPT: dict[str, Any] = json.loads(FILE.read_text())


@pytest.mark.parametrize(("section", "name"), list(classes()))
def test_numbers_change_with_the_revision_alone(section: str, name: str) -> None:
    if torch.__version__ != KEPT["torch"]:
        pytest.skip(f"the numbers are those of torch {KEPT['torch']}")
    assert problem(section, name, KEPT["classes"]) is None


def test_what_is_kept_is_registered() -> None:
    assert set(KEPT["classes"]) == {"=".join(pair) for pair in classes()}, "run `make revisions`"


def test_the_files_that_compute_are_as_committed() -> None:
    """But for comments and docstrings: what is new or edited would count in every id."""
    found = {name: tree for name, (_, tree) in hashes().items()}
    assert found == {name: tree for name, (_, tree) in committed().items()}, "run `make revisions`"


def test_other_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    twn: Any = WEIGHTS.get("twn")
    scale = twn.scale

    def slightly_larger(self: Any, rows: Tensor) -> Tensor:
        return scale(self, rows) * 1.0001

    monkeypatch.setattr(twn, "scale", slightly_larger)
    kept = KEPT["classes"]
    told = problem("weights", "twn", kept)
    assert told == ("its numbers have changed: set `revision: ClassVar[int] = 2`, then `make revisions`")
    monkeypatch.setattr(twn, "revision", 2, raising=False)
    assert problem("weights", "twn", kept) == "its revision was raised: run `make revisions`"
    assert problem("weights", "twn", {}) == "it is new: run `make revisions`"
