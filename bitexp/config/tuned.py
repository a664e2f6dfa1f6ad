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

KEYS = ("lr", "weight_decay")


def apply_tuned(config: DictConfig, hydra: Any, overrides: Sequence[str]) -> None:
    """With `tuned=true`, puts the tuned setting of the chosen quantizer into the config.

    A quantizer without a line in the file keeps the experiment's own setting (the summary table shows
    each precision's learning rate and weight decay).

    Raises:
        UserError: there is no file for the experiment, or the setting was typed as well.
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
            "write one with a line per quantizer (ternary_mean: {lr: 0.01, weight_decay: 0.0}), or use "
            "tuned=false to compare at one shared setting"
        )
    table: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    chosen = {word.lstrip("+") for word in overrides}
    for line, setting in table.items():
        precision, *further = line.split()
        if precision != hydra.runtime.choices.quantizer or not chosen.issuperset(further):
            continue
        for key, value in (setting or {}).items():
            if key not in KEYS:
                raise UserError(f"{file}: '{key}' is not a tuned setting. Known: {', '.join(KEYS)}")
            config.optimizer[key] = value
