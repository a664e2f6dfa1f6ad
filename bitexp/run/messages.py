"""What a run tells a person: the header before the first step, and at the end the answer and what is next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitexp.common.format import counted, duration, path_text, size
from bitexp.config.paths import conf_folders
from bitexp.config.schema import Settings
from bitexp.run.attempt import Attempt
from bitexp.tasks import TASKS
from bitexp.track.code import Code


def header(attempt: Attempt, checkpoint: Path | None, remarks: Sequence[str]) -> None:
    """What is about to happen, in numbers."""
    rows = dict(attempt.rows)
    if checkpoint is not None:
        rows["resumes"] = f"from {checkpoint.name}"
    for number, remark in enumerate(remarks):
        rows["note" if number == 0 else "note" + " " * number] = remark
    attempt.report.rows(f"bitexp · {title(attempt.settings)} · {path_text(attempt.folder.path)}", rows)


def title(settings: Settings) -> str:
    """Which run this is, for people."""
    return f"{settings.name} · {settings.quantizer.name} · seed {settings.seed}"


def setting_changes(
    attempts: Sequence[Mapping[str, Any]], now: Mapping[str, Any], resumed: bool
) -> list[str]:
    """What has changed since the last attempt at a run that resumes, so that its bits may differ."""
    if not attempts or not resumed:
        return []
    before = attempts[-1]
    keys = ("threads", "processor", "gpus", "device", "kernel", "source")
    known = [key for key in keys if key in before]  # older attempts say less
    changed = [f"{key} {before[key]} -> {now[key]}" for key in known if before[key] != now[key]]
    versions = before.get("versions")
    for name, old in versions.items() if isinstance(versions, dict) else ():
        if old != (new := now["versions"].get(name)):
            changed.append(f"{name} {old} -> {new}")
    if not changed:
        return []
    return [
        f"resumed under different conditions, so results may differ in their last bits: {'; '.join(changed)}"
    ]


def margin_remarks(attempts: Sequence[Mapping[str, Any]], margin: float | None) -> list[str]:
    """Says that a margin was changed after a run began: what that began with counts."""
    if not attempts or margin is None or (before := attempts[0].get("margin")) == margin:
        return []
    began = "without a margin" if before is None else f"with {before:g}"
    return [
        f"report.margin={margin:g} was set after this run, which began {began}. Verdicts keep the margin "
        "that runs began with; `python -m bitexp report --margin` takes another, and says so"
    ]


def code_remarks(code: Code) -> list[str]:
    """Which files count in the id of a run, where any do."""
    if not code.files:
        return []
    shown, more = list(code.files)[:SHOWN], len(code.files) - SHOWN
    others = f" and {counted(more, 'other file')}" if more > 0 else ""
    return [f"the id counts code that is edited or not bitexp's own: {', '.join(shown)}{others}"]


def closing(attempt: Attempt, result: Mapping[str, Any], trained: bool) -> None:
    """The answer, where it is, and what to type next; `trained` is False where it was there before."""
    settings, report = attempt.settings, attempt.report
    status, where, which = result["status"], path_text(attempt.folder.path), title(settings)
    if status == "stopped":
        report.line(f"Stopped by {result['reason']} after a checkpoint. Folder: {where}")
        report.line("The same command continues the run.")
    elif status == "pruned":
        report.detail(f"{which}: pruned at {result['reason']}. Folder: {where}")
    elif status == "failed":
        reason = str(result["reason"]).rstrip(".")
        report.detail(f"Failed{'' if trained else ' before'}: {reason}. Folder: {where}")
        report.detail(f"{HINTS.get(result['kind'], HINTS['crash'])}.")
    elif not trained and report.brief:
        accuracy = ", ".join(f"{n} {v:.4f}" for n, v in tested(result["metrics"]).items())
        report.detail(f"{which}: finished before, {accuracy}, {where}")
    else:
        done = f"finished in {duration(result['seconds'])}"
        if not trained:
            done = "finished before; nothing was trained"
        rows = answer(result["metrics"]) | {"folder": where}
        if not report.brief:
            if use := TASKS.get(settings.task.name).use:
                rows["use"] = use.format(folder=where, prompt=attempt.parts.data.prompt)
            rows["next"] = next_command(settings, attempt.overrides)
        report.rows(f"{which}: {done}", rows)


SHOWN = 4
"""So many files are named, no more."""

VARIED = ("quantizer", "seed", "sweeps", "rerun", "tuned")
"""What the comparison after a run varies, or says itself."""
SETTING = ("model", "data", "task", "optimizer", "quantizer.")
"""Keys of what tuned settings are for, or are: where they were typed, there are none."""
HINTS = {
    "diverged": "A smaller optimizer.lr or trainer.gradient_clip=1 may help; use rerun=true to try again",
    "out_of_memory": "A smaller data.batch_size with trainer.accumulate keeps the same step",
    "disk_full": "Earlier checkpoints are intact; free some space and repeat the command",
    "surroundings": "Mend that and repeat the command",
    "crash": "The same command tries again; train.log has the traceback",
}
"""What to do about a failure, by its kind."""


def tested(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the test set but the loss."""
    return {n: v for n, v in metrics.items() if n.startswith("test/") and n != "test/loss"}


def answer(metrics: Mapping[str, float]) -> dict[str, str]:
    """Test and validation metrics and sizes, as rows."""
    rows = {}
    for name, value in metrics.items():
        if name.startswith("test/"):
            packed = metrics.get(name.replace("test/", "test_packed/"))
            same = "exactly the same" if packed == value else f"{packed}, NOT the same"
            rows[name] = f"{value:.4f}   from the packed file: {same}"
    for name, value in metrics.items():
        if name.startswith("val/"):
            rows[name] = f"{value:.4f}"
    body, total = (size(metrics[f"size/{part}_bytes"]) for part in ("body", "total"))
    rows["size"] = f"body {body}, total {total}"
    return rows


def next_command(settings: Settings, overrides: Sequence[str]) -> str:
    """A comparison of this very run with other precisions, as one would type it."""
    keys = [word.lstrip("+~").partition("=")[0] for word in overrides]
    own = [word for word, key in zip(overrides, keys, strict=True) if key not in VARIED]
    tuned = any((folder / "tuning" / f"{settings.name}.yaml").is_file() for folder in conf_folders())
    if tuned and not any(key.startswith(SETTING) for key in keys):
        varied = "+sweeps=precisions"
    else:
        other = "ternary_mean" if settings.quantizer.name == "full" else settings.quantizer.name
        varied = f"quantizer=full,{other} seed=0,1,2"
    return " ".join(["python -m bitexp -m", *map(shlex.quote, own), varied])
