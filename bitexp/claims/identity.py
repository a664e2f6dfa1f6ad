"""Which run words lead to: its id, without making it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexp.common.errors import UserError
from bitexp.common.files import read_json, write_atomic
from bitexp.config.compose import composed
from bitexp.config.context import context
from bitexp.config.paths import conf_folders
from bitexp.config.schema import Settings, read_settings
from bitexp.track.folder import identity

MOST_DIGITS = 4
LR = "optimizer.lr="


@dataclass(frozen=True)
class Planned:
    """What words stand for, with any seed: the experiment, the config of seed 0, its data and its code."""

    name: str
    config: Mapping[str, Any]
    data: str
    code: Mapping[str, str]

    def id(self, seed: int) -> str:
        """The id of the run with that seed."""
        return identity({**self.config, "seed": seed}, self.data, self.code)


class Identities:
    """What words stand for, kept beside the page: to build hundreds of models takes minutes.

    Args:
        folder: where they are kept; config_dir: configs of one's own.
    """

    def __init__(self, folder: Path, config_dir: Path | None = None) -> None:
        self.file = folder / "identities.json"
        self.search = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.absolute()}]"]
        folders = [*conf_folders(), *([] if config_dir is None else [config_dir])]
        self.context = context(folders, [])
        known: Any = read_json(self.file)
        fits = isinstance(known, dict) and known.get("context") == self.context
        self._known: dict[str, Any] = known["settings"] if fits else {}
        self._new = 0

    def planned(self, words: Sequence[str]) -> Planned:
        """What words stand for, where they name no seed.

        Raises:
            UserError: they are no run, or one that starts from another or learns from it.
        """
        key = json.dumps(list(words))
        if key not in self._known:
            self._known[key] = vars(build_once([*self.search, *words]))
            self._new += 1
        return Planned(**self._known[key])

    def decay(self, words: Sequence[str], total: float) -> str:
        """The weight decay, as a word, with which learning rate times decay sums to `total` over a run.

        The words name the learning rate; the quantizer changes neither steps nor schedule.
        """
        rates = [word.partition("=")[2] for word in words if word.startswith(LR)]
        rest = [word for word in words if not word.startswith((LR, "quantizer"))]
        key = json.dumps(["sum", *rest])
        if key not in self._known:
            self._known[key] = sum_of([*self.search, *rest, f"{LR}1.0", "optimizer.weight_decay=1.0"])
            self._new += 1
        value = total / (self._known[key] * float(rates[-1]))
        return f"optimizer.weight_decay={float(f'{value:.{MOST_DIGITS}g}')!r}"

    def keep(self) -> None:
        """Writes what is new."""
        if self._new:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            content = {"context": self.context, "settings": self._known}
            write_atomic(self.file, json.dumps(content).encode())
            self._new = 0


def build_once(words: Sequence[str]) -> Planned:
    """What words stand for; builds data and model for it."""
    from bitexp.run.build import build, completed
    from bitexp.run.chain import needed
    from bitexp.run.named import named_classes
    from bitexp.track.code import code_of

    settings = settings_of(words)
    if list(needed(settings)) or settings.start.source is not None or settings.distill is not None:
        raise UserError(
            f"{' '.join(words)} starts from another run or learns from it, which claims cannot ask about"
        )
    parts = build(settings)
    settings = completed(settings, parts.quantizer)
    code = code_of(named_classes(settings, parts)).digests
    return Planned(settings.name, settings.model_dump(mode="json"), fingerprint(settings), dict(code))


def settings_of(words: Sequence[str]) -> Settings:
    """The checked config of a run. Raises `UserError`."""
    return read_settings(composed([*words, "seed=0"]))


def fingerprint(settings: Settings) -> str:
    """That of the data of a run, taken once for each way to load them."""
    return fingerprint_of(settings.data.model_dump_json())


@functools.cache
def fingerprint_of(data: str) -> str:
    """That of the data that a section of the config names."""
    from bitexp.data import DATA

    options = json.loads(data)
    return str(DATA.get(options.pop("name"))(seed=0, **options).fingerprint())


def sum_of(words: Sequence[str]) -> float:
    """Learning rate times weight decay, summed over the steps of a run."""
    from bitexp.run.attempt import budget
    from bitexp.run.build import build
    from bitexp.train.rates import lr_decay_sum

    settings = settings_of(words)
    steps = budget(settings, build(settings).data)
    return lr_decay_sum(settings.scheduler, settings.optimizer, steps)
