"""`hydra/launcher=process`: each job of a multirun in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class ProcessLauncher(Launcher):
    """Starts `python -m bitexp` for each job, with the job's own words, as a single run.

    Where it is safe, jobs are forked from one process that has imported all they need.
    """

    say: Callable[[str], None]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.watched = True
        """Whether the launcher shows how its jobs do; a sweeper that does so itself sets it to False."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction | None, config: DictConfig
    ) -> None:
        from bitexp.sweep.forked_jobs import WarmParent
        from bitexp.sweep.options import read_launcher
        from bitexp.sweep.processes import Processes

        self.config, self.hydra_context = config, hydra_context
        self.warm_parent = WarmParent(lambda text: self.say(text))
        chosen = read_launcher(plain(self.options))
        self.slots = chosen.slots
        minutes = chosen.timeout_minutes
        self.processes = Processes(
            self.slots, minutes and 60 * minutes, chosen.grace_seconds, self.warm_parent
        )

    def serve(self, workers: int) -> int:
        """Leaves the live view to a sweeper with that many workers; how many jobs there will be at once."""
        self.watched = False
        if workers > 1 and self.options.get("n_jobs") is None and not self.options.get("gpus"):
            self.options = {**self.options, "n_jobs": workers}
            self.setup(hydra_context=self.hydra_context, task_function=None, config=self.config)
        return max(workers, len(self.slots))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from bitexp.common.console import Report
        from bitexp.sweep.live_view import LastLines, LiveView
        from bitexp.sweep.processes import STOPPING
        from bitexp.sweep.turns import WAITING, Turns

        setup_globals()
        jobs = list(enumerate(job_overrides, start=initial_job_idx))
        common = set.intersection(*(set(words) for _, words in jobs)) if len(jobs) > 1 else set()
        workers, logs = min(len(self.slots), len(jobs)), Path(self.config.hydra.sweep.dir) / "logs"
        with LiveView(
            Report(quiet=not self.watched), len(jobs), workers, live=self.watched, look=LastLines(logs)
        ) as view:
            self.say = view.line if self.watched else Report().line

            turns, ended = Turns(jobs, lambda: self.processes.stopping), dict[int, JobReturn]()

            def work() -> None:
                while (job := turns.take()) is not None:
                    number, words = job
                    view.began(number, " ".join(word for word in words if word not in common))
                    record = self.run(number, words)
                    if record["status"] == WAITING:
                        view.put_back(number)
                        turns.put_back(job, Path(record["run"]))
                    else:
                        view.ended(number, record["status"], record["reason"], headline(record))
                        ended[number] = returned(record)

            with ThreadPoolExecutor(workers) as pool:
                futures = [pool.submit(work) for _ in range(workers)]
                try:
                    for future in futures:
                        future.result()
                    return [ended[number] for number, _ in jobs]
                except KeyboardInterrupt:
                    self.say(STOPPING)
                    self.stop()
                    try:
                        wait(futures)
                    except KeyboardInterrupt:
                        self.stop()
                        wait(futures)
                    raise
                finally:
                    if self.watched:
                        self.warm_parent.close()

    def run(self, number: int, words: Sequence[str]) -> dict[str, Any]:
        """Makes one job; its record."""
        from bitexp.config.words import quoted
        from bitexp.sweep.secret_words import without_secret

        folder = Path(self.config.hydra.sweep.dir).absolute()
        hydra = [*self.config.hydra.overrides.hydra, f"hydra.sweep.dir={quoted(str(folder))}"]
        hydra += [f"hydra.job.num={number}", "hydra.mode=RUN"]
        typed = [without_secret(word, str(number)) for word in (*words, *hydra)]
        command = [sys.executable, "-m", "bitexp", *self.flags(), *typed]
        task = [word for word in words if not word.lstrip("+~").startswith("hydra")]
        record = self.processes.run(command, folder, number, {"overrides": task, "tuned": False})
        note(record)
        return record

    def flags(self) -> list[str]:
        """What Hydra was told about where configs are."""
        flags = ["--config-name", str(self.config.hydra.job.config_name)]
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":
                flags += ["--config-dir", str(source.path)]
        return flags

    def stop(self) -> None:
        """Asks all jobs to stop; a second time kills them."""
        self.processes.stop()


def plain(options: Any) -> dict[str, Any]:
    """Options of a plugin as plain values."""
    value: Any = OmegaConf.to_container(OmegaConf.create(options), resolve=True)
    return dict(value)


def headline(record: dict[str, Any]) -> list[float]:
    """The value of a finished job that tables compare by."""
    value = (record.get("metrics") or {}).get(str(record.get("headline")))
    return [] if value is None else [value]


def note(record: dict[str, Any]) -> None:
    """Lets the exit code of this process say how a job in another one ended."""
    from bitexp.common.exit import Progress

    Progress.note({"finished": 0, "pruned": 0, "waiting": 0, "stopped": 130}.get(record["status"], 1))


def returned(record: dict[str, Any]) -> JobReturn:
    """A job's end as Hydra wants it. How it failed is in its record; to Hydra all of them have ended."""
    job = JobReturn(overrides=record["overrides"], status=JobStatus.COMPLETED)
    job.return_value = next(iter(headline(record)), None)
    return job
