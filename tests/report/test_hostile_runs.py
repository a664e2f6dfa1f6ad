"""Folders of runs from strangers: nothing in them stops a report, waits, takes memory or leads elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bitexp.__main__ import main
from bitexp.common.files import read_json, read_yaml, write_json, write_yaml
from bitexp.report.compare import compare
from bitexp.report.page import reproduce
from bitexp.report.runs import Problem, Run, read_run, read_runs
from bitexp.report.studies import read_studies
from bitexp.report.tables import bytes_table, precision_table, setting_table
from bitexp.report.terminal import summarize
from bitexp.report.wording import answer
from tests.support.run_folders import MakeRun, WriteRun

FILES = ("config.yaml", "overrides.yaml", "provenance.json", "result.json", "metrics.csv")


@pytest.fixture
def report(in_process: Callable[..., Any]) -> Callable[..., Any]:
    """`python -m bitexp report WORDS...`"""
    call = in_process(main, "bitexp")
    return lambda *words: call("report", *words)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 2**30)


def a_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("put", [a_pipe, a_device, a_folder, a_hole, a_loop])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_ours_is_a_line_about_its_run(
    write_run: WriteRun, name: str, put: Callable[[Path], None]
) -> None:
    odd, good = write_run(seed=0), write_run(seed=1)
    (odd / name).unlink(missing_ok=True)
    put(odd / name)
    runs, problems = read_runs([odd.parent])
    assert good in [run.path for run in runs]
    assert odd in [one.path for one in (*runs, *problems)]
    if name in ("config.yaml", "result.json"):
        assert [problem.path for problem in problems] == [odd]
        assert name in problems[0].reason
    assert all(run.curves == {} for run in runs)


@pytest.mark.parametrize("put", [a_pipe, a_device, a_folder, a_hole, a_loop])
def test_studies_and_indexes_are_files_as_well(
    write_run: WriteRun, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    run = write_run()
    put(run.parent / "studies.journal")
    studies, problems = read_studies([run.parent])
    assert studies == []
    assert [problem.path.name for problem in problems] in (["studies.journal"], [])
    sweep = tmp_path / "sweeps" / "now"
    (sweep / "jobs").mkdir(parents=True)
    put(sweep / "jobs" / "0.json")
    odd: list[Any] = [[], 5, {"run": 3}, {"run": "x" * 5000}, {"run": "\0"}, {"overrides": 5, "reason": []}]
    for number, record in enumerate(
        [*odd, {"status": ["finished"]}, {"run": str(run), "status": "finished"}]
    ):
        write_json(sweep / "jobs" / f"{number + 1}.json", record)
    assert [one.path for one in read_runs([sweep])[0]] == [run]


def test_the_end_of_a_multirun_reads_any_index(write_run: WriteRun, tmp_path: Path) -> None:
    from bitexp.common.console import Report

    (tmp_path / "jobs").mkdir()
    for number, record in enumerate([{"status": [], "overrides": 3}, {"status": "failed", "overrides": {}}]):
        write_json(tmp_path / "jobs" / f"{number}.json", record)
    summarize(tmp_path, Report(quiet=True))


ODD_RESULTS: dict[str, dict[str, Any]] = {
    "a list as headline": {"headline": []},
    "no better": {"better": "larger"},
    "a number beyond all": {"metrics": {"test/accuracy": 1e308}},
    "text as a metric": {"metrics": {"test/accuracy": "0.9"}},
    "another status": {"status": "won"},
    "a list as status": {"status": ["finished"]},
    "text as time": {"step_ms": "fast"},
    "a list as steps": {"steps": [1]},
    "a mapping as unit": {"unit": {}},
}


@pytest.mark.parametrize("case", ODD_RESULTS)
def test_an_odd_result_is_a_line_about_its_run(write_run: WriteRun, case: str) -> None:
    odd, good = write_run(seed=0, result=ODD_RESULTS[case]), write_run(seed=1)
    runs, problems = read_runs([odd.parent])
    assert [run.path for run in runs] == [good]
    assert [problem.path for problem in problems] == [odd]
    assert problems[0].reason.startswith("result.json ")


def test_a_report_follows_no_planted_link(
    write_run: WriteRun, report: Callable[..., Any], tmp_path: Path
) -> None:
    run = write_run()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("dear")
    out = run.parent / "report"
    (out / "tables").mkdir(parents=True)
    for name in (".index.html.part", "index.html", ".report.md.part", "tables/made_up-precisions.csv"):
        (out / name).symlink_to(elsewhere / "file")
    assert report(run.parent).code == 0
    assert (elsewhere / "file").read_text() == "dear"
    assert not (out / "index.html").is_symlink()
    (out / "plots").rename(out / "old")
    (out / "plots").symlink_to(elsewhere)
    assert "plots is a link" in report(run.parent).err
    out.rename(run.parent / "old")
    out.symlink_to(elsewhere)
    ended = report(run.parent)
    assert ended.code == 2
    assert "report is a link" in ended.err
    assert [entry.name for entry in elsewhere.iterdir()] == ["file"]


def test_names_of_any_bytes_are_reported(
    make_run: MakeRun, report: Callable[..., Any], tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/runs/\xff\xfe"))
    make_run(odd, seed=0)
    make_run(odd.with_name("broken"), seed=1)
    (odd.with_name("broken") / "config.yaml").write_text("[")
    ended = report(tmp_path / "runs")
    assert ended.code == 0, ended.err
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    assert "%FF%FE/" in page
    assert "broken" in page


ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 5, 10**400, 2**63, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 0.5])
    | st.sampled_from(
        ["", "full", "finished", "2026-11-25", "\ud800", "x\n\0y", "$x_$", "2026-11-25T10:00:00Z"]
    )
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in nested lists and mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(value, key), *places(part)]]


def spoil(path: Path, data: st.DataObject) -> None:
    """Gives some values in the files of a run other ones, of any type."""
    for name in data.draw(st.lists(st.sampled_from(FILES[:4]), min_size=1, max_size=2, unique=True)):
        content = [read_json(path / name) if name.endswith("json") else read_yaml(path / name)]
        content = json.loads(json.dumps(content))
        for _ in range(data.draw(st.integers(1, 2))):
            where, key = data.draw(st.sampled_from(places(content)))
            where[key] = data.draw(ODD)
        if name.endswith("json"):
            (path / name).write_text(json.dumps(content[0]))
        else:
            (path / name).write_bytes(yaml.safe_dump(content[0]).encode(errors="surrogatepass"))
    if data.draw(st.booleans()):
        lines = data.draw(
            st.lists(st.sampled_from(["1,0,val/accuracy,inf", "9e9,,,", "9" * 5000, "1,0,a,1e308"]))
        )
        (path / "metrics.csv").write_text("\n".join(["step,epoch,metric,value", *lines]))


@given(data=st.data())
@settings(max_examples=30)
def test_runs_of_any_values_are_compared_or_a_line(
    tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, data: st.DataObject
) -> None:
    """All that a report does but for its plots, which take a second."""
    folder = tmp_path_factory.mktemp("runs")
    for number in range(4):
        spoil(make_run(folder / f"{number}", ("full", "binary")[number % 2], seed=number // 2), data)
    make_run(folder / "good", seed=7)
    runs, problems = read_runs([folder])
    assert len(runs) + len(problems) == 5
    for comparison in compare(runs):
        answer(comparison)
        reproduce(comparison.runs, lambda run: "")
        for table in (precision_table(comparison), setting_table(comparison), bytes_table(comparison)):
            if table is not None:
                table.texts(), table.values()


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=15)
def test_a_report_is_always_made(
    tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    for number in range(12):
        spoil(make_run(folder / f"{number}", ("full", "binary")[number % 2], seed=number // 2), data)
    assert main_code("report", str(folder)) == 0
    page = (folder / "report" / "index.html").read_text()
    for number in range(12):
        read = read_run(folder / f"{number}")
        assert isinstance(read, Run | Problem)
        assert isinstance(read, Run) or f"/{number}</code>" in page


def main_code(*words: str) -> int:
    """The exit code of `python -m bitexp WORDS...`."""
    from bitexp.report.command import main as report_main

    return report_main(list(words[1:]))


def test_a_shape_of_yaml_is_read_as_yaml_reads_it(tmp_path: Path) -> None:
    """Entries are parsed one by one, and remembered: with the same result."""
    for text in (
        "a: 1\nb:\n- 1\n- {c: 2}\nd: |\n  x\n\n  y\n",
        "a: 'x\nb: 1'\n",
        "- a\n- b: 1\n  c: 2\n-\n  - d\n",
        "# comment\na: 1\n",
        "a: &x [1]\nb: *x\n",
        "a: 1\na: 2\n",
        "? a\n: 1\nb: 2\n",
        "a: 1\n---\nb: 2\n",
        "",
        "x",
    ):
        (tmp_path / "x.yaml").write_text(text)
        try:
            expected = yaml.safe_load(text)
        except yaml.YAMLError:
            expected = None
        assert read_yaml(tmp_path / "x.yaml") == expected
    write_yaml(tmp_path / "x.yaml", {"a": [1, {"b": "é"}]})
    assert read_yaml(tmp_path / "x.yaml") == {"a": [1, {"b": "é"}]}
