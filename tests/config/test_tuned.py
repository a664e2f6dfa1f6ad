"""Tuned settings: taken from a file, which a person may have written, and only called so where they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from bitexp.common.errors import UserError
from bitexp.config.tuned import apply_tuned


def applied(folder: Path, content: str, quantizer: str, *typed: str) -> DictConfig:
    """The config after it, where `content` is the file of the experiment."""
    (folder / "tuning").mkdir(exist_ok=True)
    (folder / "tuning" / "mine.yaml").write_text(content)
    choices = SimpleNamespace(quantizer=quantizer)
    runtime = SimpleNamespace(choices=choices, config_sources=[SimpleNamespace(path=str(folder))])
    optimizer = {"lr": 0.001, "weight_decay": 0.5}
    config: Any = OmegaConf.create({"name": "mine", "tuned": True, "optimizer": optimizer})
    apply_tuned(config, SimpleNamespace(runtime=runtime), typed)
    assert isinstance(config, DictConfig)
    return config


FILE = "binary: {lr: 0.01, weight_decay: 0.0}\nbinary model.dim=8: {lr: 0.03}\nfull:\n"


@pytest.mark.parametrize(
    ("quantizer", "typed", "expected"),
    [
        ("binary", (), (0.01, 0.0, True)),
        ("binary", ("model.dim=8",), (0.03, 0.0, True)),
        ("full", (), (0.001, 0.5, True)),
        ("ternary_mean", (), (0.001, 0.5, False)),  # without a line
    ],
)
def test_the_last_line_that_fits_wins(
    quantizer: str, typed: tuple[str, ...], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    config = applied(tmp_path, FILE, quantizer, *typed)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.tuned) == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("binary: 0.01", "'binary: 0.01' should be a line such as ternary_mean: {lr"),
        ("3: {lr: 0.1}", "should be a line such as"),
        ("- binary", "has no lines such as"),
        ("binary: {lr: 0.1", "cannot be read"),
        ("binary: {weight_deca: 0.1}", "'weight_deca' is not a tuned setting. Did you mean 'weight_decay'"),
    ],
)
def test_a_line_of_another_form_is_told(content: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        applied(tmp_path, content, "binary")
    assert sentence in str(refusal.value)
    assert "mine.yaml" in str(refusal.value)
