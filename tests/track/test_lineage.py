"""The runs behind a run, each once, with what they took."""

from __future__ import annotations

from typing import Any

from bitexp.common.files import read_json, write_json
from bitexp.track.folder import RunFolder
from bitexp.track.lineage import ancestors, known
from tests.support.run_folders import WriteRun


def entry(run: str, **changes: Any) -> dict[str, Any]:
    return {"run": run, "quantizer": "full", "seed": 0, "setting": "s", "steps": 5, "seconds": 2.0, **changes}


def test_a_run_and_those_behind_it_are_told_once_each(write_run: WriteRun) -> None:
    first = write_run("full", result={"steps": 100, "seconds": 9.5, "quantizer": "full"})
    behind = [entry("made_up/teacher"), entry(f"made_up/{first.name}")]
    second = write_run("binary", made={"ancestors": behind}, result={"quantizer": "binary"})
    found = ancestors([RunFolder(second), RunFolder(first)])
    names = [second.name, "teacher", first.name]
    assert [one["run"] for one in found] == [f"made_up/{name}" for name in names]
    (own,) = ancestors([RunFolder(first)])
    assert (own["quantizer"], own["seed"], own["steps"], own["seconds"]) == ("full", 0, 100, 9.5)


def test_a_setting_is_what_seeds_have_in_common(write_run: WriteRun) -> None:
    folders = [
        write_run("full", 0),
        write_run("full", 1, start__identity="aaaa"),
        write_run("full", 0, optimizer__lr=0.1),
    ]
    settings = [ancestors([RunFolder(folder)])[0]["setting"] for folder in folders]
    assert settings[0] == settings[1] != settings[2]


def test_what_is_of_another_form_is_left_out(write_run: WriteRun) -> None:
    good = entry("made_up/a")
    bad: list[Any] = [None, "x", {}, entry("b", steps="many"), entry("c", seconds=1e400), {**good, "run": 3}]
    assert known({"ancestors": [*bad, good]}) == [good]
    assert known({"ancestors": "none"}) == known({}) == []


def test_a_run_whose_files_are_gone_is_told_all_the_same(write_run: WriteRun) -> None:
    folder = write_run("full")
    (folder / "config.yaml").unlink()
    (folder / "result.json").unlink()
    write_json(folder / "provenance.json", {**(read_json(folder / "provenance.json") or {})})
    (found,) = ancestors([RunFolder(folder)])
    assert (found["steps"], found["seconds"]) == (0, 0.0)
