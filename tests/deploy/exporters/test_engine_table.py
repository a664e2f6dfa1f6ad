"""What is measured in an engine is kept in the run's folder, and the exit code says what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.common.exit import Progress
from bitexp.common.files import read_json
from bitexp.data import load_data
from bitexp.deploy.description import Description
from bitexp.deploy.engine_table import tell
from bitexp.deploy.engines import ENGINES
from bitexp.deploy.exporters.exporter import Packed
from bitexp.deploy.exporters.writing import build, write
from bitexp.track.measurements import later_metrics
from tests.support.exports import packed
from tests.support.quantizers import make_quantizer


@pytest.fixture
def source(tmp_path: Path) -> Packed:
    """A run's folder as far as engines go: a packed file, and on what data."""
    (tmp_path / "config.yaml").write_text("data: {name: digits}\nseed: 0\n")
    sizes = {"shape": (1, 8, 8), "classes": 10, "hidden": [12], "activation": "relu", "dropout": 0.0}
    chosen = make_quantizer("binary").to_json()
    return packed(
        tmp_path, Description("mlp", sizes, chosen, exclude=["head"]), load_data("digits").preprocessing()
    )


class Wrong(ENGINES.get("c")):  # type: ignore[misc]
    """An engine that computes something else."""

    def outputs(self, inputs: Tensor) -> Tensor:
        return torch.roll(super().outputs(inputs), 1, -1)


def test_figures_are_kept_where_reports_find_them(
    tmp_path: Path, source: Packed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(Progress, "note", codes.append)
    tell(source, {"c": ENGINES.get("c")}, samples=50)
    assert not codes
    metrics = later_metrics(tmp_path, None)
    assert metrics["engine/c/same"] == 1
    assert metrics["engine/c/samples"] == 50
    assert metrics["engine/c/flaws"] == metrics["engine/c/difference"] == 0
    assert metrics["engine/c/per_second"] > 0
    tell(source, {"c": Wrong}, samples=50)
    assert codes == [1]
    metrics = later_metrics(tmp_path, None)
    assert metrics["engine/c/same"] < 1
    assert metrics["engine/c/flaws"] == 1
    assert "computes something else" in capsys.readouterr().out


def test_figures_of_a_folder_that_was_named_are_not_kept(tmp_path: Path, source: Packed) -> None:
    write(build("c", {"optimize": "speed"}), source, tmp_path / "c")
    tell(source, {"c": ENGINES.get("c")}, tmp_path / "c", samples=10)
    assert read_json(tmp_path / "measurements.json") is None


def test_a_file_outside_of_a_run_has_no_data(tmp_path: Path, source: Packed) -> None:
    (tmp_path / "config.yaml").unlink()
    engines: dict[str, Any] = {"c": ENGINES.get("c")}
    with pytest.raises(UserError, match="lies in no run's folder"):
        tell(source, engines)
