"""Slurm: a job whose time is up asks to be started again, and goes on from its checkpoint then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection

from bitexp.common.console import Report

UNTIL_ENDED = 120.0
"""Seconds in which Slurm ends the processes of a job that is queued again."""


def requeue(report: Report) -> bool:
    """Asks Slurm to queue the job of this process again. Says what came of it, and whether it will be."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None:
        report.line("Slurm was not asked to start this run again: it did not start it (no SLURM_JOB_ID)")
        return False
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
        problem = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is None:
        report.line(f"Slurm was asked to start job {job} again, which continues this run")
    else:
        report.line(f"Slurm could not be asked to start job {job} again: {problem}")
    return problem is None


def come_again(report: Report) -> None:
    """Gives the nodes of this job back while another makes what it needs: it begins anew, later.

    Slurm ends this process then; it returns where Slurm does not, so that there is nothing but to wait.
    """
    if os.environ.get("SLURM_NTASKS", "1") == "1" and requeue(report):
        time.sleep(UNTIL_ENDED)


def hand_on(signum: int) -> None:
    """Gives a signal that has stopped a run to who caught it before: submitit, which queues its job again.

    Does not return where it is queued again.

    Raises:
        KeyboardInterrupt: nobody else caught it, so that it was meant for all jobs of this process.
    """
    handler = signal.getsignal(signum)
    if signum != signal.SIGUSR2 or not callable(handler):
        raise KeyboardInterrupt
    try:
        handler(signum, None)
    except Exception:  # it was queued again too often: the record of the job says that it was stopped
        return


def queued(jobs: Collection[str]) -> set[str] | None:
    """Which jobs and members of arrays (`17_3`) Slurm has not ended yet; None where it does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(sorted(jobs))}"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:  # what ended some time ago is not known any more
        return set() if "Invalid job id" in done.stderr else None
    return set(done.stdout.split())


def cancel(jobs: Collection[str], kind: str | None) -> None:
    """Ends jobs, or sends them the signal of that name (`INT`), as far as Slurm still has them."""
    if not jobs:
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["scancel", "--quiet", *([] if kind is None else [f"--signal={kind}"]), *sorted(jobs)]
        subprocess.run(command, capture_output=True, timeout=60)
