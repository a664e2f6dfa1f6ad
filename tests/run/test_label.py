"""A quantizer has one name everywhere: that of its YAML, a preset's as any other's."""

from __future__ import annotations

import json

import pytest
import yaml

from bitexp.common.console import Report
from bitexp.report.runs import Run, read_run
from tests.support.training import Train


def test_a_preset_has_its_own_name_in_the_header_the_result_the_card_the_config_and_the_report(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("quantizer=reloaded", report=Report()).folder
    lines = capsys.readouterr().out.splitlines()
    assert " · reloaded · " in lines[0]
    assert any("reloaded: 1.58 bits per weight" in line for line in lines)
    assert any(line.startswith("first_steps · reloaded · seed 0: finished") for line in lines)
    assert json.loads((folder / "result.json").read_text())["quantizer"] == "reloaded"
    assert yaml.safe_load((folder / "config.yaml").read_text())["quantizer"]["name"] == "reloaded"
    assert (folder / "MODEL_CARD.md").read_text().startswith("# first_steps, reloaded, seed 0\n")
    run = read_run(folder)
    assert isinstance(run, Run)
    assert run.precision == "reloaded"
