"""A run in words: its model, quantizer, data, kernel and training, a line for each."""

from __future__ import annotations

import math

from bitexp.common.format import amount, size
from bitexp.config.schema import Settings
from bitexp.deploy.packing import LAYOUTS, choose_layout
from bitexp.run.checks import possible_codes
from bitexp.run.parts import Parts


def body_weights(parts: Parts) -> int:
    """Weights in the quantized layers."""
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
    quantizer, full = parts.quantizer, 4 * body_weights(parts)
    if not quantizer.quantizes_weights:
        norm = "" if quantizer.norm == "none" else f", with the inner {quantizer.norm} norm"
        return f"{settings.quantizer.name}: 32 bits per weight{norm}; body {size(full)}"
    name = choose_layout(settings.packing, possible_codes(quantizer))
    rows = [parts.model.get_parameter(f"{n}.weight") for n in parts.conversion.body]
    packed = sum(w.shape[0] * math.ceil(w[0].numel() / LAYOUTS[name].per_byte) for w in rows)
    return (
        f"{settings.quantizer.name}: {quantizer.bits:.3g} bits per weight, activations "
        f"{quantizer.activations}, norm {quantizer.norm}; body {size(packed)} as {name} "
        f"(full: {size(full)}, {full / packed:.1f}x)"
    )


def kernel_line(parts: Parts) -> str:
    """Which kernel multiplies codes, and why."""
    if not parts.quantizer.quantizes_weights:
        return "none: no layer has codes to multiply"
    return f"{parts.kernel_name} ({parts.kernel_reason})"


def data_line(settings: Settings, parts: Parts, batches: int) -> str:
    """Sizes of the parts, and the arithmetic of batches; `batches` is how many there are in an epoch."""
    data = parts.data
    counts = " / ".join(f"{count:,} {part}" for part, count in data.sizes.items())
    epoch = f"batch {data.batch_size} = {batches:,} batches an epoch"
    return "; ".join([f"{settings.data.name}, {counts} {data.unit}", epoch, *filter(None, [data.remarks()])])


def train_line(settings: Settings, steps: int, lr_decay_sum: float) -> str:
    """Optimizer, schedule, steps, and how much weight decay can shrink the weights at all."""
    options, optimizer, scheduler = settings.trainer, settings.optimizer, settings.scheduler
    return (
        f"{optimizer.name} lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g} "
        f"(lr x decay sums to {lr_decay_sum:.3g}), {scheduler.name}; {options.epochs} "
        f"epoch{'s' * (options.epochs != 1)} = {steps:,} steps, "
        f"{options.precision}, {options.devices} x {options.accelerator}, "
        f"{options.threads} thread{'s' * (options.threads != 1)}"
    )
