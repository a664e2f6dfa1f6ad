"""The wandb workspace: built and serialised without network, refused in words without a login."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitexp.__main__ import main
from bitexp.report import dashboard


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no entity, no home folder with one."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.fixture
def program(in_process: Callable[..., Any]) -> Callable[..., Any]:
    call = in_process(main, "bitexp")
    return lambda *words: call("dashboard", *words)


def strings(node: Any) -> set[str]:
    """All texts in a JSON value."""
    if isinstance(node, str):
        return {node}
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return {text for part in parts for text in strings(part)}


def test_the_workspace_is_written_without_network(program: Any, tmp_path: Path) -> None:
    file = tmp_path / "workspace.json"
    ended = program("--entity", "team", "--experiment", "vit_ternary", "--json", file)
    assert ended.code == 0, ended.err
    made = json.loads(file.read_text())
    assert (made["entity"], made["project"]) == ("team", "bitexp")
    assert made["displayName"] == "Precisions compared: vit_ternary"
    sections = made["spec"]["section"]["panelBankConfig"]["sections"]
    kinds = [panel["viewType"] for section in sections for panel in section["panels"]]
    assert {"Bar Chart", "Run History Line Plot", "Scatter Plot", "Parallel Coordinates Plot"} <= set(kinds)
    assert "vit_ternary" in strings(made["spec"])


def test_its_names_are_those_that_a_run_logs(train: Any) -> None:
    """Every metric is in a run's metrics.csv, and every key in its config."""
    from bitexp.report.runs import read_run

    run: Any = read_run(train("callbacks.diagnostics=true").folder)
    texts = strings(dashboard.serialised(dashboard.workspace("team", "bitexp", "accuracy", None)))
    named = {text.removeprefix("summary:") for text in texts if "/" in text and " " not in text}
    named -= {dashboard.STEP}
    assert len(named) > 8
    assert named <= {*run.curves, *run.metrics}
    keys = {text for text in texts if ".value" in text}
    assert keys
    assert {key.removeprefix("config:").replace(".value", "") for key in keys} <= set(run.flat)


def test_another_metric_can_be_asked_for() -> None:
    texts = strings(dashboard.serialised(dashboard.workspace("team", "bitexp", "bits_per_byte", None)))
    assert "summary:test/bits_per_byte" in texts
    assert not [text for text in texts if "accuracy" in text]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name your wandb user or team with --entity or WANDB_ENTITY"),
        (["--entity", "team"], "run `wandb login` once, or set WANDB_API_KEY"),
        (["--entity", "team", "--json", "nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_what_is_missing_is_told(words: list[str], said: str, program: Any) -> None:
    ended = program(*words)
    assert ended.code == 2
    assert said in ended.err


def test_a_server_that_refuses_is_told(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb_workspaces.workspaces as ws

    def refuse(self: Any) -> None:
        raise RuntimeError("no such entity")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(ws.Workspace, "save", refuse)
    ended = program("--entity", "team")
    assert ended.code == 2
    assert "wandb refused the workspace: no such entity" in ended.err


def test_without_the_package_the_extra_is_named(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    ended = program("--entity", "team")
    assert ended.code == 2
    assert "pip install 'bitexp[dashboard]'" in ended.err
