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


def precision_table(runs: list[tuple[dict[str, Any], Any, dict[str, Any]]]) -> Table:
    """A row per precision and swept setting: metric over seeds, difference to full, setting, size."""
    keys = swept_keys([job for job, _, _ in runs])
    groups: dict[tuple[str, ...], list[tuple[Any, dict[str, Any]]]] = defaultdict(list)
    for job, result, config in runs:
        typed = dict(o.lstrip("+").partition("=")[::2] for o in job["overrides"])
        precision = typed.get("quantizer", config["quantizer"]["name"])
        groups[precision, *(typed.get(key, "") for key in keys)].append((result, config))
    metric = runs[0][1]["headline"]

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("precision", *keys):
        table.add_column(name)
    for name in (metric, "vs full", "seeds", "lr", "weight decay", "body", "total", "ms/step"):
        table.add_column(name, justify="right")
    means = {group: mean([r["metrics"][metric] for r, _ in members]) for group, members in groups.items()}
    for group, members in sorted(groups.items(), key=lambda item: (item[0][1:], order(item[0][0]))):
        values = [r["metrics"][metric] for r, _ in members]
        base = means.get(("full", *group[1:]))
        apart = "" if base is None or group[0] == "full" else f"{means[group] - base:+.4f}"
        first, config = members[0]
        settings = {(c["optimizer"]["lr"], c["optimizer"]["weight_decay"]) for _, c in members}
        lr, decay = (f"{v:g}" for v in next(iter(settings))) if len(settings) == 1 else ("mixed", "mixed")
        paces = [r["step_ms"] for r, _ in members if r["step_ms"] is not None]
        table.add_row(
            *(escape(word) for word in group),
            spread(values),
            apart,
            str(len(values)),
            lr,
            decay,
            size(first["metrics"]["size/body_bytes"]),
            size(first["metrics"]["size/total_bytes"]),
            f"{statistics.median(paces):.1f}" if paces else "",
        )
    return table


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


def caption(runs: list[tuple[dict[str, Any], Any, dict[str, Any]]]) -> str:
    """What kind of comparison this is."""
    tuned = all(job["tuned"] for job, _, _ in runs)
    what = "each precision at its tuned setting" if tuned else "all precisions at one shared setting"
    return f"Mean ± standard deviation over seeds; {what}."
