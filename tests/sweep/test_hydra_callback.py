"""What happens before the first job of a multirun."""

from __future__ import annotations

from pathlib import Path

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
