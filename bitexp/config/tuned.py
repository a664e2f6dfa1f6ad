"""Each precision at its own tuned learning rate and weight decay: conf/tuning/EXPERIMENT.yaml.

ternary_mean: {lr: 0.005, weight_decay: 0.0}
ternary_mean model.dim=32: {lr: 0.01}

A line is for a precision, or for one with further choices that were typed; later lines win.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from bitexp.common.errors import UserError
from bitexp.common.spelling import nearest

KEYS = ("lr", "weight_decay")
EXAMPLE = "ternary_mean: {lr: 0.01, weight_decay: 0.0}"


def apply_tuned(config: DictConfig, hydra: Any, overrides: Sequence[str]) -> None:
    """With `tuned=true`, puts the tuned setting of the chosen quantizer into the config.

    A quantizer without a line in the file keeps the experiment's own setting, and its run is not called
    tuned (the summary table shows each precision's learning rate and weight decay).

    Raises:
        UserError: there is no file for the experiment, it is damaged, or the setting was typed as well.
    """
    if not config.get("tuned"):
        return
    typed = [o for o in overrides if o.lstrip("+").split("=")[0] in {f"optimizer.{key}" for key in KEYS}]
    if typed:
        raise UserError(f"tuned=true sets what {typed[0]} sets: leave out one of the two")
    places = [Path(s.path) / "tuning" / f"{config.name}.yaml" for s in hydra.runtime.config_sources if s.path]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(
            f"tuned=true needs a file tuning/{config.name}.yaml beside the configs and there is none; "
            f"write one with a line per quantizer ({EXAMPLE}), or use "
            "tuned=false to compare at one shared setting"
        )
    chosen = {word.lstrip("+") for word in overrides}
    found = [
        setting
        for line, setting in read_lines(file).items()
        if line.split()[0] == hydra.runtime.choices.quantizer and chosen.issuperset(line.split()[1:])
    ]
    config.tuned = bool(found)  # or else a report would call it so
    for setting in found:
        for key, value in setting.items():
            if key not in KEYS:
                hint = nearest(str(key), KEYS)
                raise UserError(f"{file}: '{key}' is not a tuned setting.{hint} Known: {', '.join(KEYS)}")
            config.optimizer[key] = value


def read_lines(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of a file of tuned settings, by precision with its further choices.

    Raises:
        UserError: it cannot be read, or has a line of another form.
    """
    try:
        table: Any = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{file} has no lines such as {EXAMPLE}")
    lines = {}
    for line, setting in table.items():
        if not (isinstance(line, str) and line.strip() and isinstance(setting, dict | None)):
            raise UserError(f"{file}: '{line}: {setting}' should be a line such as {EXAMPLE}")
        lines[line] = setting or {}
    return lines
