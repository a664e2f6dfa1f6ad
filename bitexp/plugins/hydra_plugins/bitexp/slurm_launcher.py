"""`hydra/launcher=slurm`: the jobs of a multirun as one job array of Slurm, submitted by submitit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.bitexp.launcher import note, plain, returned
from omegaconf import DictConfig

POLL = 2.0  # seconds between looks at what has ended
OWN = ("submitit_folder", "max_num_timeout")
GENERAL = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name")
"""Options that submitit has for all clusters; the others are Slurm's."""


class SlurmLauncher(Launcher):
    """Submits jobs as Hydra's `submitit_slurm` does, and waits for them by its own looks, or does not wait.

    What that launcher lacks: it waits forever for a job that died where Slurm keeps no accounts, and ends
    with the first job that failed.
    """

    def __init__(self, wait: bool, **options: Any) -> None:
        self.wait, self.options = wait, options
        self.under_way: set[str] = set()
        """What was submitted and has not ended, by Slurm's numbers."""
        self.quiet = self.stopping = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from bitexp.common.errors import UserError

        try:
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Submitit
        except ImportError:
            raise UserError(
                "hydra/launcher=slurm needs the extra packages of pip install 'bitexp[slurm]'"
            ) from None
        self.config = config
        self.job = Submitit(**plain(self.options))
        self.job.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def serve(self, workers: int) -> int:
        """How many trials of a study there are at once. Raises `UserError` where none is waited for."""
        from bitexp.common.errors import UserError

        if not self.wait:
            raise UserError(
                "hydra.launcher.wait=false goes with a grid: a study learns from its trials, so it waits for "
                "them. Start the command itself in the background"
            )
        self.quiet = True
        return workers

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from bitexp.common.console import Report
        from bitexp.common.format import counted, path_text

        numbered = list(enumerate(job_overrides, start=initial_job_idx))
        if not numbered:
            return []
        jobs = self.submit(numbered)
        array, report, folder = jobs[0].job_id.partition("_")[0], Report(quiet=self.quiet), self.folder
        report.line(
            f"In Slurm's queue as {array}: {counted(len(jobs), 'job')}, writing to {path_text(self.logs)}"
        )
        if not self.wait:
            report.line(
                f"python -m bitexp report {path_text(folder)} --watch follows them; scancel {array} ends them"
            )
            return [returned({"overrides": list(words)}) for words in job_overrides]
        self.under_way.add(array)
        try:
            return self.ended(jobs, numbered)
        except KeyboardInterrupt:
            report.line(
                f"The jobs go on without this command, which finds them finished when it is given again; "
                f"scancel {array} ends them"
            )
            raise
        finally:
            self.under_way.discard(array)

    def stop(self) -> None:
        """Asks the jobs of a study to stop after a checkpoint; a second time ends them."""
        from bitexp.run.slurm import cancel

        cancel(self.under_way, None if self.stopping else "INT")
        self.stopping = True

    @property
    def folder(self) -> Path:
        """The index of the multirun."""
        return Path(self.config.hydra.sweep.dir).absolute()

    @property
    def logs(self) -> Path:
        """Where submitit keeps what jobs print, and what they are to do."""
        return Path(self.options["submitit_folder"]).absolute()

    def submit(self, numbered: Sequence[tuple[int, Sequence[str]]]) -> list[Any]:
        """Hands jobs to Slurm, several as an array. Raises `UserError` where Slurm does not take them."""
        import submitit
        from submitit.core.utils import FailedJobError

        from bitexp.common.errors import UserError

        self.folder.mkdir(parents=True, exist_ok=True)
        options = {key: value for key, value in plain(self.options).items() if key not in OWN}
        try:
            executor = submitit.AutoExecutor(
                self.logs, "slurm", slurm_max_num_timeout=self.options["max_num_timeout"]
            )
            executor.update_parameters(
                **{key if key in GENERAL else f"slurm_{key}": value for key, value in options.items()}
            )
            calls = [
                (list(words), "hydra.sweep.dir", number, f"job_{number}", Singleton.get_state())
                for number, words in numbered
            ]
            return executor.map_array(self.job, *zip(*calls, strict=True))
        except (FailedJobError, RuntimeError, OSError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[-1].strip("'")
            raise UserError(f"Slurm did not take the jobs: {reason.removeprefix('sbatch: ')}") from None

    def ended(self, jobs: Sequence[Any], numbered: Sequence[tuple[int, Sequence[str]]]) -> list[JobReturn]:
        """Waits until each job has left its result or is gone from the queue without one."""
        from bitexp.common.files import read_json, write_json
        from bitexp.run.slurm import queued

        records: dict[int, dict[str, Any]] = {}
        gone: set[int] = set()
        while len(records) < len(jobs):
            alive = queued({job.job_id.partition("_")[0] for job in jobs})
            for job, (number, words) in zip(jobs, numbered, strict=True):
                if number in records:
                    continue
                index, over = self.folder / "jobs" / f"{number}.json", left_result(job)
                if not over and (alive is None or job.job_id in alive):
                    gone.discard(number)
                    continue
                if not over and number not in gone:  # shared file systems show a file some seconds late
                    gone.add(number)
                    continue
                record = read_json(index)  # also a job that is stopped leaves one
                if not isinstance(record, dict):
                    record = died(job, words)
                    index.parent.mkdir(parents=True, exist_ok=True)
                    write_json(index, record)
                records[number] = record
                note(record)
            if len(records) < len(jobs):
                time.sleep(POLL)
        return [returned(records[number]) for number, _ in numbered]


def left_result(job: Any) -> bool:
    """Whether all processes of a job have ended by themselves, which they note in files."""
    tasks = [job.task(number) for number in range(job.num_tasks)]
    return all(task.paths.result_pickle.exists() for task in tasks)


def died(job: Any, words: Sequence[str]) -> dict[str, Any]:
    """The record of a job that left none: ended from outside, or before its run began."""
    from bitexp.sweep.processes import last_lines

    log = job.paths.stderr
    reason = f"Slurm's job {job.job_id} is gone and left no result (out of memory, scancel or a lost node?)"
    return {
        "overrides": [word for word in words if not word.lstrip("+~").startswith("hydra")],
        "tuned": False,
        "status": "failed",
        "kind": "died",
        "reason": f"{reason}. {log}: {last_lines(log)}".rstrip(": "),
    }
