"""`hydra/sweeper=basic`, where no other is chosen: all combinations of what is swept, but finished ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.bitexp.launcher import headline
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
        from bitexp.common.format import counted
        from bitexp.sweep.finished_cells import FinishedCells
        from bitexp.sweep.options import check_folder

        check_folder(self.config.hydra)
        words = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = {o.get_key_element(): choices(o) for o in parser.parse_overrides(words)}
        cells = list(itertools.product(*overrides.values()))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        sources = self.config.hydra.runtime.config_sources
        known = FinishedCells([Path(s.path) for s in sources if s.schema == "file"], words)
        known.collect()
        finished = {cell: record for cell in cells if (record := known.record(cell)) is not None}
        missing, done = [list(cell) for cell in cells if cell not in finished], len(finished)
        self.validate_batch_is_legal(missing)
        if done:
            (folder / "jobs").mkdir(exist_ok=True)
            for number, record in enumerate(finished.values()):  # thousands of them: not flushed to disk each
                (folder / "jobs" / f"{number}.json").write_text(json.dumps(record), encoding="utf-8")
            other = f", {known.of_other_source} by a different version of bitexp (rerun=true repeats them)"
            remark = other if known.of_other_source else ""
            were = f"{counted(len(cells), 'cell')} {'was' if done == 1 else 'were'}"
            Report().line(f"{done} of {were} finished before{remark}")
        in_turn = type(self.launcher).__name__ == "BasicLauncher"
        launch = self.one_by_one(len(cells), missing) if in_turn else self.launcher.launch
        returns, size = [], self.max_batch_size or len(missing) or 1
        if missing:
            known.begin(folder, range(done, len(cells)))
        try:
            for start in range(0, len(missing), size):
                batch = missing[start : start + size]
                returns.append(launch(batch, initial_job_idx=done + start))
                for job in returns[-1]:
                    _ = job.return_value  # raises what a job has raised
        finally:
            known.collect()
        return returns

    def one_by_one(self, total: int, cells: Sequence[Sequence[str]]) -> Callable[..., list[JobReturn]]:
        """A launcher of jobs in this very process, with a line for each that ends and the time left.

        Args:
            total: of all cells; cells: those that are to be made.
        """
        from bitexp.common.console import Report
        from bitexp.common.files import read_json
        from bitexp.sweep.live_view import LiveView

        folder = Path(self.config.hydra.sweep.dir) / "jobs"
        common = set.intersection(*map(set, cells)) if len(cells) > 1 else set()

        def launch(batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            returned: list[JobReturn] = []
            with LiveView(Report(), total, 1, live=False) as view:
                view.done = initial_job_idx
                for number, words in enumerate(batch, start=initial_job_idx):
                    view.began(number, " ".join(word for word in words if word not in common))
                    returned += self.launcher.launch([list(words)], initial_job_idx=number)
                    _ = returned[-1].return_value  # raises what a job has raised
                    record = read_json(folder / f"{number}.json") or {}
                    status = str(record.get("status", "ended"))
                    before = " before" * (status == "finished" and not record.get("trained"))
                    view.ended(number, status + before, record.get("reason"), headline(record))
            return returned

        return launch


def choices(override: Override) -> list[str]:
    """The words of a typed one, of which each job gets one. Raises `HydraException` for an interval."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"'{override.input_line}' lists no values: hydra/sweeper=optuna draws from it")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
