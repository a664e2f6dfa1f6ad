"""Slurm: a job whose time is up asks to be started again, and goes on from its checkpoint then."""

from __future__ import annotations

import os
import subprocess

from bitexp.common.console import Report


def requeue(report: Report) -> None:
    """Asks Slurm to queue the job of this process again. Says what came of it."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None:
        report.line("Slurm was not asked to start this run again: it did not start it (no SLURM_JOB_ID)")
        return
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
