"""`hydra/sweeper=basic`, where no other is chosen: all combinations of what is swept, but finished ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(Sweeper):
    """Makes the cells of a grid as jobs; those that are known to be finished are recorded and not begun."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any

    def __init__(self, max_batch_size: int | None, params: dict[str, Any] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from bitexp.common.console import Report
        from bitexp.sweep.finished_cells import FinishedCells

        words = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = {o.get_key_element(): choices(o) for o in parser.parse_overrides(words)}
        cells = list(itertools.product(*overrides.values()))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        sources = self.config.hydra.runtime.config_sources
        known = FinishedCells([Path(s.path) for s in sources if s.schema == "file"], words)
        finished = {cell: record for cell in cells if (record := known.record(cell)) is not None}
        missing, done = [list(cell) for cell in cells if cell not in finished], len(finished)
        self.validate_batch_is_legal(missing)
        if done:
            (folder / "jobs").mkdir(exist_ok=True)
            for number, record in enumerate(finished.values()):  # thousands of them: not flushed to disk each
                (folder / "jobs" / f"{number}.json").write_text(json.dumps(record), encoding="utf-8")
            other = f", {known.of_other_source} by a different version of bitexp (rerun=true repeats them)"
            remark = other if known.of_other_source else ""
            Report().line(f"{done} of {len(cells)} cells were finished before{remark}")
        returns, size = [], self.max_batch_size or len(missing) or 1
        try:
            for start in range(0, len(missing), size):
                batch = missing[start : start + size]
                returns.append(self.launcher.launch(batch, initial_job_idx=done + start))
                for job in returns[-1]:
                    _ = job.return_value  # raises what a job has raised
        finally:
            known.note(records(folder / "jobs", range(done, len(cells))))
        return returns


def choices(override: Override) -> list[str]:
    """The words of a typed one, of which each job gets one. Raises `HydraException` for an interval."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"'{override.input_line}' lists no values: hydra/sweeper=optuna draws from it")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def records(folder: Path, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    """What jobs have recorded, by number."""
    from bitexp.common.files import read_json

    for number in numbers:
        if isinstance(record := read_json(folder / f"{number}.json"), dict):
            yield record
