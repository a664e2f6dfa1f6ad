"""Thousands of runs: what is read, drawn and shown for each of them is bounded; counts, not seconds, tell."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitexp.common import files
from bitexp.config.schema import Settings, read_settings
from bitexp.report import figure, plots, sweep_plots
from bitexp.report.compare import Comparison, compare
from bitexp.report.page import MOST, Section, page
from bitexp.report.runs import Run, read_runs
from bitexp.report.tables import precision_table, setting_table
from bitexp.track.folder import RunFolder, identity
from bitexp.track.unfinished import note_kind, unfinished_runs
from tests.support.configs import ComposeConfig
from tests.support.many_runs import write_many_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A sweep of 2,000 runs."""
    folder = tmp_path_factory.mktemp("many") / "swept"
    folder.mkdir()
    write_many_runs(folder, 2000)
    read, problems = read_runs([folder])
    assert problems == []
    return read


@pytest.fixture(scope="module")
def comparison(runs: list[Run]) -> Comparison:
    (only,) = compare(runs)
    return only


def test_what_runs_have_in_common_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_many_runs(tmp_path, 200)
    loads: Counter[str] = Counter()
    load = files.yaml.load

    def counted(text: str, loader: Any) -> Any:
        loads[text] += 1
        return load(text, loader)

    files.parsed.cache_clear()
    monkeypatch.setattr(files.yaml, "load", counted)
    assert len(read_runs([tmp_path])[0]) == 200
    assert set(loads.values()) == {1}
    assert len(loads) < 100


def test_a_page_of_thousands_of_runs_stays_one_that_a_browser_shows(
    runs: list[Run], comparison: Comparison, tmp_path: Path
) -> None:
    assert len(comparison.runs) == 1800
    tables = [precision_table(comparison), setting_table(comparison)]
    unfinished = [run for run in runs if not run.finished]
    text = page([Section(comparison, tables, [])], [], None, unfinished, [], tmp_path)
    assert text.count("<tr>") <= 4 * (MOST + 1)
    assert f"The first {MOST} of 400 rows; all are in the folder tables beside this page." in text
    assert len(text) < 1e6


def test_plots_of_thousands_of_runs_have_few_parts(runs: list[Run], comparison: Comparison) -> None:
    with figure.style():
        for drawing in (
            sweep_plots.timeline(runs),
            sweep_plots.heat(comparison, []),
            plots.quality(comparison),
        ):
            assert drawing is not None
            assert len(figure.svg(drawing, "x")) < 4e5
            assert sum(len(axes.get_children()) for axes in drawing.axes) < 500


def test_more_rows_than_a_legend_can_name_are_points_by_precision(comparison: Comparison) -> None:
    from dataclasses import replace

    rows = [replace(comparison.rows[0], cell=cell) for cell in comparison.cells[:50]]
    with figure.style():
        drawing = plots.quality(replace(comparison, rows=tuple(rows)))
    assert drawing is not None
    (legend,) = drawing.legends
    assert len(legend.get_texts()) == len({row.cell.precision for row in rows})


def test_a_start_reads_one_file_of_each_other_run_once(
    compose_config: ComposeConfig, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config()
    settings: Settings = read_settings(config)
    folder = outputs / settings.name
    folder.mkdir(parents=True)
    write_many_runs(folder, 30)
    own = RunFolder(folder / identity(settings.model_dump(mode="json"), "other data"))
    own.begin(settings, [], {"data": "other data"})
    opened: Counter[str] = Counter()
    open_regular = files.open_regular

    def counted(path: Path) -> Any:
        opened[path.name] += 1
        return open_regular(path)

    monkeypatch.setattr(files, "open_regular", counted)
    assert [found.id for found in unfinished_runs(settings)] == [own.id]
    assert opened["provenance.json"] == 32  # with that of the one that was found
    opened.clear()
    assert [found.id for found in unfinished_runs(settings)] == [own.id]
    assert opened["provenance.json"] == 1
    assert sum(opened.values()) < 8
    other = RunFolder(folder / identity(settings.model_dump(mode="json"), "yet other data"))
    note_kind(other, {"data": "yet other data"})
    other.begin(settings, [], {"data": "yet other data"})
    assert {found.id for found in unfinished_runs(settings)} == {own.id, other.id}
    (kind, *_) = sorted((folder / ".kinds").glob("*.json"))
    kind.write_text("damaged")
    assert {found.id for found in unfinished_runs(settings)} == {own.id, other.id}


def test_the_timeline_names_its_runs_or_some_of_them(runs: list[Run]) -> None:
    few = sweep_plots.timeline(runs[:4])
    assert few is not None
    labels = [text.get_text() for text in few.axes[0].get_yticklabels()]
    assert sorted(labels) == sorted(f"{run.precision}, seed {run.seed} · {run.id}" for run in runs[:4])
    many = sweep_plots.timeline(runs)
    assert many is not None
    assert 24 <= len(many.axes[0].get_yticklabels()) <= sweep_plots.NAMED
