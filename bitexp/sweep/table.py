"""From the jobs of a multirun to one table: a line per precision (and other swept keys), seeds averaged."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bitexp.console import Report, size
from bitexp.files import read_json, read_yaml
from bitexp.track.folder import RunFolder


def summarize(sweep: Path, report: Report) -> None:
    """Reads the index of a multirun and the runs it names, and prints what they say together."""
    records = [read_json(path) for path in sorted((sweep / "jobs").glob("*.json"), key=lambda p: int(p.stem))]
    jobs = [record for record in records if isinstance(record, dict)]
    finished = [job for job in jobs if job["status"] == "finished"]
    runs = [(job, *found) for job in finished if (found := read_run(Path(job["run"]))) is not None]
    if runs:
        report.line()
        report.table(precision_table(runs))
        report.line(caption(runs))
        if (best := best_table(runs)) is not None:
            report.table(best)
            report.line("Each precision's best cell by validation, and its validation over the whole grid.")
    trained = sum(bool(job.get("trained")) for job in finished)
    report.line(f"{len(jobs)} jobs: {trained} trained, {len(finished) - trained} finished before, "
                f"{len(jobs) - len(finished)} not finished. Index: {sweep}")  # fmt: skip
    for job in jobs:
        if job["status"] != "finished":
            where = f" ({job['run']})" if job.get("run") else ""
            report.line(f"  {job['status']}: {', '.join(job['overrides'])}: {job['reason']}{where}")


def read_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A run's result and config; None where they have gone since."""
    result = RunFolder(path).result()
    config = read_yaml(path / "config.yaml")
    return None if result is None or not isinstance(config, dict) else (result, config)


def swept_keys(jobs: list[dict[str, Any]]) -> list[str]:
    """The keys that differ between jobs, but for the quantizer and the seed."""
    values: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        for override in job["overrides"]:
            key, _, value = override.lstrip("+").partition("=")
            values[key].add(value)
    return [key for key, seen in values.items() if len(seen) > 1 and key not in ("quantizer", "seed")]


LR_DECAY = "lr x decay"  # summed over the steps: what a weight decay comes to

Run = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""A finished job: its record, its result, its config."""


def grouped(runs: list[Run]) -> tuple[list[str], dict[tuple[str, ...], list[Run]]]:
    """The swept keys, and the runs by precision and their values: what is left in a group are seeds."""
    keys = swept_keys([job for job, _, _ in runs])
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        typed = dict(o.lstrip("+").partition("=")[::2] for o in run[0]["overrides"])
        precision = typed.get("quantizer", run[2]["quantizer"]["name"])
        groups[precision, *(typed.get(key, "") for key in keys)].append(run)
    return keys, groups


def values_of(runs: list[Run], metric: str) -> list[float]:
    """A metric of every run."""
    return [result["metrics"][metric] for _, result, _ in runs]


def precision_table(runs: list[Run]) -> Table:
    """A row per precision and swept setting: metric over seeds, difference to full, setting, size."""
    keys, groups = grouped(runs)
    metric = runs[0][1]["headline"]
    own = {"optimizer.lr": "lr", "optimizer.weight_decay": "weight decay"}
    own = {key: name for key, name in own.items() if key not in keys}  # what is swept has its column
    decays = [LR_DECAY] if any(result["lr_decay_sum"] for _, result, _ in runs) else []
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("precision", *keys):
        table.add_column(name)
    for name in (metric, "vs full", "seeds", *own.values(), *decays, "body", "total", "ms/step"):
        table.add_column(name, justify="right")
    means = {group: mean(values_of(members, metric)) for group, members in groups.items()}
    for group, members in sorted(groups.items(), key=lambda item: (item[0][1:], order(item[0][0]))):
        base = means.get(("full", *group[1:]))
        first = members[0][1]
        paces = [r["step_ms"] for _, r, _ in members if r["step_ms"] is not None]
        table.add_row(
            *(escape(word) for word in group),
            spread(values_of(members, metric)),
            "" if base is None or group[0] == "full" else f"{means[group] - base:+.4f}",
            str(len(members)),
            *(shared([c["optimizer"][key.partition(".")[2]] for _, _, c in members]) for key in own),
            *(shared([r["lr_decay_sum"] for _, r, _ in members]) for _ in decays),
            size(first["metrics"]["size/body_bytes"]),
            size(first["metrics"]["size/total_bytes"]),
            f"{statistics.median(paces):.1f}" if paces else "",
        )
    return table


def best_table(runs: list[Run]) -> Table | None:
    """A row per precision: its best setting by validation, what the test says there, and the whole grid.

    None where nothing but precisions and seeds was swept, or nothing was validated.
    """
    keys, groups = grouped(runs)
    metric = runs[0][1]["headline"]
    validated = metric.replace("test/", "val/")
    if not keys or any(validated not in result["metrics"] for _, result, _ in runs):
        return None
    sign = 1 if runs[0][1]["better"] == "max" else -1
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("best cell of", *keys):
        table.add_column(name)
    for name in (validated, metric, "seeds", LR_DECAY, "cells", "median cell", "worst cell"):
        table.add_column(name, justify="right")
    for precision in sorted({group[0] for group in groups}, key=order):
        cells = {group: members for group, members in groups.items() if group[0] == precision}
        scores = {group: mean(values_of(members, validated)) for group, members in cells.items()}
        best = max(scores, key=lambda group: sign * scores[group])
        members = cells[best]
        table.add_row(
            *(escape(word) for word in best),
            spread(values_of(members, validated)),
            spread(values_of(members, metric)),
            str(len(members)),
            shared([r["lr_decay_sum"] for _, r, _ in members]),
            str(len(cells)),
            f"{statistics.median(scores.values()):.4f}",
            f"{min(scores.values(), key=lambda score: sign * score):.4f}",
        )
    return table


def shared(values: list[float]) -> str:
    """The one value that all runs of a row have."""
    found = {f"{value:.3g}" for value in values}
    return found.pop() if len(found) == 1 else "mixed"


def order(precision: str) -> tuple[int, str]:
    """Full precision first, then its control, then the others by name."""
    return ({"full": 0, "full_norm": 1}.get(precision, 2), precision)


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds; one value stands alone."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{mean(values):.4f} ± {statistics.stdev(values):.4f}"


def caption(runs: list[Run]) -> str:
    """What kind of comparison this is."""
    if all(job["tuned"] for job, _, _ in runs):
        what = "each precision at its tuned setting"
    elif any(key.startswith("optimizer.") for key in swept_keys([job for job, _, _ in runs])):
        what = "each row at the setting it names"
    else:
        what = "all precisions at one shared setting"
    return f"Mean ± standard deviation over seeds; {what}."
