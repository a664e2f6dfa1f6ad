"""What happens before the first job of a multirun."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from bitexp.sweep.hydra_callback import Summary


def multirun(folder: Path, *words: str) -> DictConfig:
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}
    overrides = {"task": ["seed=0,1"], "hydra": list(words)}
    hydra = {"sweep": {"dir": str(folder)}, "sweeper": sweeper, "overrides": overrides}
    return OmegaConf.create({"hydra": {**hydra, "job": {"override_dirname": "seed=0,1"}}, "seed": 0})


def test_two_that_begin_in_the_same_second_have_their_own_folders(tmp_path: Path) -> None:
    named = tmp_path / "sweeps" / "2026-11-29_12-00-00"
    configs = [multirun(named) for _ in range(3)]
    for config in configs:
        Summary().on_multirun_start(config)
    folders = [config.hydra.sweep.dir for config in configs]
    assert folders == [str(named), f"{named}-2", f"{named}-3"]
    assert configs[1].hydra.overrides.hydra == [f"hydra.sweep.dir='{named}-2'"]  # for its jobs


def test_a_folder_that_was_named_is_taken_as_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        config = multirun(tmp_path / "mine", f"hydra.sweep.dir={tmp_path}/mine")
        Summary().on_multirun_start(config)
        assert config.hydra.sweep.dir == str(tmp_path / "mine")


def test_where_the_folder_cannot_be_written_the_index_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweeps").write_text("no folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = multirun(tmp_path / "sweeps" / "2026-11-29_12-00-00")
    Summary().on_multirun_start(config)
    folder = Path(config.hydra.sweep.dir)
    assert folder.is_dir()
    assert folder.parent == tmp_path
    assert config.hydra.overrides.hydra == [f"hydra.sweep.dir='{folder}'"]
    said = " ".join(capsys.readouterr().out.split())
    assert "sweeps cannot be written (File exists): the index is kept in" in said
