"""MODEL_CARD.md in a run's folder: what the model is, what it does, how it was made, where its limits are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitexp.common.files import write_atomic
from bitexp.common.format import amount, counted, duration, energy_text, path_text, size
from bitexp.common.secrets import redacted
from bitexp.config.schema import Settings
from bitexp.deploy.exporters import EXPORTERS, expressible
from bitexp.run.attempt import Attempt
from bitexp.run.energy import INFERENCE, TRAINING
from bitexp.tasks import TASKS
from bitexp.track.checkout import DIFF
from bitexp.track.provenance import command_of


def write_card(attempt: Attempt, result: Mapping[str, Any]) -> Path:
    """Writes the card of a finished run beside its result, and returns where.

    Raises:
        OSError: it cannot be written.
    """
    path = attempt.folder.card
    write_atomic(path, redacted(card(attempt, result)).encode())
    return path


def card(attempt: Attempt, result: Mapping[str, Any]) -> str:
    """The card as Markdown; every number is from the run's own files."""
    settings, folder, rows = attempt.settings, attempt.folder, attempt.rows
    metrics, record = result["metrics"], folder.attempts()[-1]
    sections = {
        "Model": [rows["model"], rows["quantizer"]],
        "Task and data": [f"{settings.task.name.replace('_', ' ')} on {rows['data']}"],
        "Training": [
            rows["train"],
            *([f"started from {rows['start']}"] if "start" in rows else []),
            *([f"learned from {rows['teacher']}"] if "teacher" in rows else []),
            f"seed {settings.seed}; {counted(result['steps'], 'step')} in {duration(result['seconds'])}; "
            f"tested weights: {result['weights']}",
        ],
        "Metrics": table(metrics),
        "Size": [
            f"body {size(metrics['size/body_bytes'])}, whole file {size(metrics['size/total_bytes'])} "
            f"of tensors in `{folder.packed.name}`",
            *costs(metrics, result),
        ],
        "What stays in full precision": [
            f"`{pattern}`" for pattern in settings.quantizer.exclude or ["nothing that multiplies"]
        ]
        + ["norms, biases, embeddings and products between activations"],
        "Hardware and software": [
            f"{', '.join(record['gpus']) or record['processor']}, {counted(record['threads'], 'thread')}, "
            f"{record['platform']}",
            ", ".join(f"{name} {number}" for name, number in record["versions"].items() if number),
            source(record),
        ],
        "Where it runs": engines(attempt),
        "Limits": limits(settings, result),
    }
    lines = [f"# {settings.name}, {settings.quantizer.name}, seed {settings.seed}", ""]
    for title, items in sections.items():
        lines += [f"## {title}", "", *([*items] if title == "Metrics" else [f"- {i}" for i in items]), ""]
    use = TASKS.get(settings.task.name).use
    again = ["## How it was made", "", *fenced(record["command"])]
    if (alone := command_of(attempt.overrides)) != record["command"]:
        again += ["", "This run alone, outside of any sweep:", "", *fenced(alone)]
    if use:
        again += [
            "",
            "## How to use it",
            "",
            *fenced(use.format(folder=path_text(folder.path), prompt=attempt.parts.data.prompt)),
        ]
    return "\n".join([*lines, *again, ""])


def table(metrics: Mapping[str, float]) -> list[str]:
    """Test metrics beside those of the packed file, then validation, as a table."""
    rows = ["| metric | trained network | packed file |", "|---|---|---|"]
    for name, value in metrics.items():
        if name.startswith(("test/", "val/")):
            packed = metrics.get(name.replace("test/", "test_packed/"), None) if "test/" in name else None
            rows.append(f"| {name} | {value:.6g} | {'' if packed is None else f'{packed:.6g}'} |")
    return rows


def costs(metrics: Mapping[str, float], result: Mapping[str, Any]) -> list[str]:
    """Operations of an inference and memory of a step, where they were measured."""
    if "cost/total_macs" not in metrics:
        return []
    kinds = ("fp32_add", "fp32_mul", "int8_add", "int8_mul")
    counted = ", ".join(f"{amount(metrics[f'cost/{kind}'])} {kind.replace('_', ' ')}" for kind in kinds)
    return [
        f"operations for one of its {result['unit']}: {counted}",
        f"{size(metrics['memory/saved_bytes'])} kept by autograd in a training step",
        f"energy of one of its {result['unit']}, idle subtracted: {measured_energy(metrics, INFERENCE)}",
        f"energy of the training, idle subtracted: {measured_energy(metrics, TRAINING)}",
    ]


def measured_energy(metrics: Mapping[str, float], name: str) -> str:
    """Joules, where a counter of the machine could be read."""
    return energy_text(metrics[name]) if name in metrics else "not measured"


def source(record: Mapping[str, Any]) -> str:
    """The version of bitexp and of the data that it was made with."""
    git = record.get("git")
    commit = "outside of a git checkout"
    if git:
        kept = f" (`{DIFF}`)" if record["uncommitted"] == DIFF else ""
        commit = f"commit {git['commit']}{f' with changes{kept}' if git['dirty'] else ''}"
    return f"bitexp {commit}, source {record['source']}; data {record['data']}"


def engines(attempt: Attempt) -> list[str]:
    """Which engines can run the model, and why others cannot."""
    found = expressible(attempt.parts.model, attempt.description.preprocessing.get("tokenizer"))
    folder = path_text(attempt.folder.path)
    return [
        f"{EXPORTERS.get(name).engine}: "
        + (f"`python -m bitexp export {folder} --to {name}`" if why is None else f"no, {why}")
        for name, why in found.items()
    ]


def limits(settings: Settings, result: Mapping[str, Any]) -> list[str]:
    """What the numbers above do not say."""
    lines = [
        "One run with one seed: differences from other runs are meaningful only over several seeds "
        "(`python -m bitexp report`).",
        f"Trained and tested on {settings.data.name} alone; how to prepare inputs is in the header of the "
        "packed file.",
        "Fairness, robustness and misuse were not examined.",
    ]
    limited = [key for key in ("train_batches", "eval_batches") if getattr(settings.trainer, key) is not None]
    if limited:
        lines.insert(0, f"Shortened by {' and '.join(f'trainer.{key}' for key in limited)}.")
    if result["weights"] == "best validation":
        lines.append(
            "The checkpoint was chosen on the validation part, so its validation metrics are optimistic."
        )
    return lines


def fenced(text: str) -> list[str]:
    """A code block that the text cannot leave."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}bash", text, fence]
