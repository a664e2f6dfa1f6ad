"""The words around a run: derived numbers before the first step, at the end the answer and what is next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitexp.common.console import Report
from bitexp.common.format import amount, duration, shown, size
from bitexp.config.paths import CONF
from bitexp.config.schema import Settings
from bitexp.deploy.packing import LAYOUTS, choose_layout
from bitexp.quant.layers import QuantizedLayer, quantized_layers
from bitexp.run.attempt import Parts
from bitexp.tasks import TASKS
from bitexp.track.folder import RunFolder
from bitexp.train.rates import lr_decay_sum


def header(
    report: Report,
    settings: Settings,
    parts: Parts,
    folder: RunFolder,
    checkpoint: Path | None,
    remarks: Sequence[str],
) -> None:
    """What is about to happen, in numbers."""
    rows = {
        "model": model_line(settings, parts),
        "quantizer": quantizer_line(settings, parts),
        "data": data_line(settings, parts),
        "kernel": kernel_line(parts),
        "train": train_line(settings, parts),
    }
    if checkpoint is not None:
        rows["resumes"] = f"from {checkpoint.name}"
    for number, remark in enumerate(remarks):
        rows["note" if number == 0 else "note" + " " * number] = remark
    title = (
        f"bitexp · {settings.name} · {settings.quantizer.name} · seed {settings.seed} · {shown(folder.path)}"
    )
    report.rows(title, rows)


def body_weights(parts: Parts) -> int:
    """Weights in the layers that the quantizer speaks for."""
    return sum(parts.model.get_parameter(f"{name}.weight").numel() for name in parts.conversion.body)


def model_line(settings: Settings, parts: Parts) -> str:
    """Parameters in body and head, and what stays in full precision."""
    total = sum(p.numel() for p in parts.model.parameters())
    body = body_weights(parts)
    kept = ", ".join(settings.quantizer.exclude) or "nothing"
    return (
        f"{settings.model.name}, {amount(total)} parameters: body {amount(body)} in "
        f"{len(parts.conversion.body)} layers ({body / total:.1%}), head {amount(total - body)} "
        f"(full precision: {kept}, norms, biases)"
    )


def quantizer_line(settings: Settings, parts: Parts) -> str:
    """Bits per weight, and the body's bytes when packed."""
    layers, full = quantized_layers(parts.model), 4 * body_weights(parts)
    name, norms = settings.quantizer.name, inner_norms(parts)
    if not layers:
        norm = f", with the inner {norms} norm" if norms else ""
        return f"{name}: 32 bits per weight{norm}; body {size(full)}"
    packings = {layer: choose_layout(settings.packing, layer.spec.levels) for layer in layers.values()}
    packed = sum(
        layer.weight.shape[0] * LAYOUTS[packings[layer]].row_bytes(layer.weight[0].numel())
        for layer in layers.values()
    )
    weights = sum(layer.weight.numel() for layer in layers.values())
    packed += full - 4 * weights  # layers that a rule leaves in full precision
    bits = sum(bits_per_weight(layer) * layer.weight.numel() for layer in layers.values()) / weights
    chosen = Counter(label(layer) for layer in layers.values())
    mixture = ""
    if len(chosen) > 1:
        mixture = f" ({', '.join(f'{what} in {number} layers' for what, number in chosen.items())})"
    activations = sorted(
        {layer.spec.activations.part.name if layer.spec.activations else "none" for layer in layers.values()}
    )
    return (
        f"{name}: {bits:.3g} bits per weight{mixture}, activations {', '.join(activations)}, norm "
        f"{norms or 'none'}; body {size(packed)} as {', '.join(sorted(set(packings.values())))} "
        f"(full: {size(full)}, {full / packed:.1f}x)"
    )


def bits_per_weight(layer: QuantizedLayer) -> float:
    """Bits of information in a weight."""
    weights = layer.parts.weights
    return weights.levels.bits if weights.bits is None else weights.bits


def label(layer: QuantizedLayer) -> str:
    """The weight quantizer of a layer, with its bits where it can have others."""
    part = layer.options.weights
    assert part is not None
    return f"{part.name} of {part.options['bits']} bits" if "bits" in part.options else part.name


def inner_norms(parts: Parts) -> str:
    """The norms that layers of the body bring, or nothing."""
    norms = {m.spec.norm for m in parts.model.modules() if isinstance(m, QuantizedLayer)} - {"none"}
    return ", ".join(sorted(norms))


def batches(settings: Settings, parts: Parts) -> int:
    """Training batches in an epoch, over all processes' share of one."""
    count = parts.data.sizes["train"] // parts.data.batch_size // world(settings)
    return max(1, min(count, settings.trainer.train_batches or count))


def world(settings: Settings) -> int:
    """Processes that train together."""
    return settings.trainer.devices if isinstance(settings.trainer.devices, int) else 1


def kernel_line(parts: Parts) -> str:
    """Which kernel multiplies codes, and why."""
    if not parts.quantizer.quantizes:
        return "none: no layer has codes to multiply"
    return f"{parts.kernel_name} ({parts.kernel_reason})"


def data_line(settings: Settings, parts: Parts) -> str:
    """Sizes of the parts, and the arithmetic of batches."""
    data = parts.data
    counts = " / ".join(f"{count:,} {part}" for part, count in data.sizes.items())
    epoch = f"batch {data.batch_size} = {batches(settings, parts):,} batches an epoch"
    return "; ".join([f"{settings.data.name}, {counts} {data.unit}", epoch, *filter(None, [data.remarks()])])


def train_line(settings: Settings, parts: Parts) -> str:
    """Optimizer, schedule, steps, and how much weight decay can shrink the weights at all."""
    options, optimizer, scheduler = settings.trainer, settings.optimizer, settings.scheduler
    steps = options.epochs * math.ceil(batches(settings, parts) / options.accumulate)
    steps = min(steps, options.max_steps or steps)
    shrink = lr_decay_sum(scheduler, optimizer, steps)
    return (
        f"{optimizer.name} lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g} "
        f"(lr x decay sums to {shrink:.3g}), {scheduler.name}; {options.epochs} "
        f"epoch{'s' * (options.epochs != 1)} = {steps:,} steps, "
        f"{options.precision}, {options.devices} x {options.accelerator}, "
        f"{options.threads} thread{'s' * (options.threads != 1)}"
    )


def setting_changes(
    attempts: Sequence[Mapping[str, Any]], now: Mapping[str, Any], resumed: bool
) -> list[str]:
    """What of the machine is other than when a run that resumes began: its bits may differ then."""
    if not attempts or not resumed:
        return []
    before = attempts[-1]
    keys = ("threads", "processor", "gpus", "source")
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in keys if before.get(key) != now[key]]
    versions = before.get("versions")
    for name, old in versions.items() if isinstance(versions, dict) else ():
        if old != (new := now["versions"].get(name)):
            changed.append(f"{name} {old} -> {new}")
    if not changed:
        return []
    return [f"resumed under other conditions, so the bits may differ: {'; '.join(changed)}"]


def closing(
    report: Report,
    settings: Settings,
    folder: RunFolder,
    result: Mapping[str, Any],
    trained: bool,
) -> None:
    """The answer, where it is, and what to type next."""
    status, where = result["status"], shown(folder.path)
    title = f"{settings.name} · {settings.quantizer.name} · seed {settings.seed}"
    if status == "stopped":
        report.line(f"Stopped by {result['reason']} after a checkpoint. Folder: {where}")
        report.line("The same command continues.")
    elif status == "pruned":
        report.line(f"{title}: pruned at {result['reason']}. Folder: {where}")
    elif status == "failed":
        reason = str(result["reason"]).rstrip(".")
        report.line(f"Failed{'' if trained else ' before'}: {reason}. Folder: {where}")
        report.line(f"{HINTS.get(result['kind'], HINTS['crash'])}.")
    elif not trained and report.brief:
        accuracy = ", ".join(f"{n} {v:.4f}" for n, v in tested(result["metrics"]).items())
        report.line(f"{title}: finished before, {accuracy}, {where}")
    else:
        done = f"finished in {duration(result['seconds'])}"
        if not trained:
            done = "finished before; nothing was trained"
        rows = answer(result["metrics"]) | {"folder": where}
        if not report.brief:
            if use := TASKS.get(settings.task.name).use:
                rows["use"] = use.format(folder=where)
            rows["next"] = next_command(settings)
        report.rows(f"{title}: {done}", rows)


HINTS = {
    "diverged": "A smaller optimizer.lr or trainer.gradient_clip=1 may help; rerun=true tries again",
    "out_of_memory": "A smaller data.batch_size with trainer.accumulate keeps the same step",
    "disk_full": "Earlier checkpoints are intact; free some space and give the same command",
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
            same = "the same, exactly" if packed == value else f"{packed}, NOT the same"
            rows[name] = f"{value:.4f}   from the packed file: {same}"
    for name, value in metrics.items():
        if name.startswith("val/"):
            rows[name] = f"{value:.4f}"
    body, total = (size(metrics[f"size/{part}_bytes"]) for part in ("body", "total"))
    rows["size"] = f"body {body}, total {total}"
    return rows


def next_command(settings: Settings) -> str:
    """A comparison of this experiment with other precisions, as one would type it."""
    words = ["python -m bitexp -m"]
    if (CONF / "experiment" / f"{settings.name}.yaml").is_file():
        words.append(f"+experiment={settings.name}")
    if (CONF / "tuning" / f"{settings.name}.yaml").is_file():
        return " ".join([*words, "+sweeps=precisions"])
    return " ".join([*words, "quantizer=full,ternary_mean seed=0,1,2"])
