"""A run in words: its model, quantizer, data, kernel and training, a line for each."""

from __future__ import annotations

from collections import Counter

from torch import nn

from bitexp.common.format import amount, counted, size, value_text
from bitexp.config.schema import Distill, Settings
from bitexp.deploy.cost import bits_per_weight
from bitexp.deploy.exporters import EXPORTERS, expressible
from bitexp.deploy.frozen import Packing
from bitexp.deploy.packing import Layout
from bitexp.quant.layers import QuantizedLayer, quantized_layers
from bitexp.run.distill import cache_bytes
from bitexp.run.parts import Parts


def body_weights(parts: Parts) -> int:
    """Weights in the quantized layers."""
    return sum(parts.model.get_parameter(f"{name}.weight").numel() for name in parts.conversion.body)


def learned_by_quantizer(parts: Parts) -> int:
    """Parameters of the quantizer itself: learned scales, shifts, latents of further bits."""
    layers = quantized_layers(parts.model).values()
    return sum({id(p): p.numel() for layer in layers for p in layer.quantizer_parameters()}.values())


def model_line(settings: Settings, parts: Parts) -> str:
    """Parameters in body and head, and what stays in full precision."""
    total = sum(p.numel() for p in parts.model.parameters())
    body, learned = body_weights(parts), learned_by_quantizer(parts)
    head = amount(total - body - learned)
    kept = ", ".join(settings.quantizer.exclude) or "nothing"
    scales = f", {amount(learned)} learned by the quantizer" if learned else ""
    return (
        f"{settings.model.name}, {amount(total)} parameters: body {amount(body)} in "
        f"{counted(len(parts.conversion.body), 'layer')} ({body / total:.1%}){scales}, head {head} "
        f"(full precision: {kept}, norms, biases)"
    )


def quantizer_line(settings: Settings, parts: Parts) -> str:
    """Bits per weight, and the body's bytes when packed."""
    layers, full = quantized_layers(parts.model), 4 * body_weights(parts)
    name, norms = settings.quantizer.name, inner_norms(parts)
    if not layers:
        norm = f", with the inner {norms} norm" if norms else ""
        return f"{name}: 32 bits per weight{norm}; body {size(full)}"
    packings = {layer: Packing.of(settings.packing.layout, layer.spec) for layer in layers.values()}
    weights = sum(layer.weight.numel() for layer in layers.values())
    packed = full - 4 * weights  # layers that a rule leaves in full precision
    packed += sum(packed_bytes(layer, packing.layout) for layer, packing in packings.items())
    bits = sum(bits_per_weight(layer) * layer.weight.numel() for layer in layers.values()) / weights
    chosen = Counter(label(layer) for layer in layers.values())
    mixture = ""
    if len(chosen) > 1:
        counts = (f"{what} in {counted(number, 'layer')}" for what, number in chosen.items())
        mixture = f" ({', '.join(counts)})"
    activations = {
        s.activations.part.name if s.activations else "none"
        for s in (layer.spec for layer in layers.values())
    }
    layouts = ", ".join(sorted({packing.name for packing in packings.values()}))
    return (
        f"{name}: {bits:.3g} bits per weight{mixture}, activations {', '.join(sorted(activations))}, norm "
        f"{norms or 'none'}; body {size(packed)} as {layouts} "
        f"(full: {size(full)}, {full / packed:.1f}x)"
    )


def packed_bytes(layer: QuantizedLayer, layout: Layout) -> int:
    """Bytes of a layer in the packed file, its bias left out: codes, scales, shifts, what its parts learn."""
    codes = len(layer.weight) * layout.row_bytes(layer.weight[0].numel())
    _, scales = layer.parts.weights.rows(
        layer.weight
    )  # their shape: quantizing the weights would take longer
    shift = layer.quantized().shift if layer.spec.shift else None
    parts = (layer.parts.activations, layer.parts.transform, layer.parts.sparsifier)
    kept = sum(t.nbytes for part in parts if part is not None for t in part.state_dict().values())
    of_weights = layer.spec.levels.planes * scales.numel() + (0 if shift is None else shift.numel())
    return codes + kept + 4 * of_weights


def label(layer: QuantizedLayer) -> str:
    """The weight quantizer of a layer, with its bits where it can have others."""
    part = layer.options.weights
    assert part is not None
    return f"{part.name} of {part.options['bits']} bits" if "bits" in part.options else part.name


def inner_norms(parts: Parts) -> str:
    """The norms that layers of the body bring, or nothing."""
    norms = {m.spec.norm for m in parts.model.modules() if isinstance(m, QuantizedLayer)} - {"none"}
    return ", ".join(sorted(norms))


def kernel_line(parts: Parts) -> str:
    """Which kernel multiplies codes, and why."""
    if not parts.quantizer.quantizes:
        return "none: no layer has codes to multiply"
    return f"{parts.kernel_name} ({parts.kernel_reason})"


def engines_line(parts: Parts, tokenizer: str | None) -> str:
    """The engines that can run the trained model, and those that cannot."""
    found = expressible(parts.model, tokenizer)
    engines = {name: EXPORTERS.get(name).engine for name in found}
    fit = ", ".join(engines[name] for name, why in found.items() if why is None)
    unfit = ", ".join(engines[name] for name, why in found.items() if why is not None)
    return f"{fit}; not in {unfit}" if unfit else fit


def data_line(settings: Settings, parts: Parts, batches: int) -> str:
    """Sizes of the parts, and the arithmetic of batches; `batches` is how many there are in an epoch."""
    data = parts.data
    counts = " / ".join(f"{count:,} {part}" for part, count in data.sizes.items())
    epoch = f"batch {data.batch_size} = {counted(batches, 'batch')} an epoch"
    return "; ".join([f"{settings.data.name}, {counts} {data.unit}", epoch, *filter(None, [data.remarks()])])


def calibrate_line(settings: Settings) -> str:
    """What is done to a network that is not trained any more."""
    chosen = settings.calibrate
    options = ", ".join(f"{key} {value_text(value)}" for key, value in chosen.arguments.items())
    return "not calibrated" if chosen.name == "none" else f"calibrated by {chosen.name}: {options}"


BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BY_PROCESS = " (batch norm over the part of the batch that each has)"
"""Why several processes do not train what one would with the whole batch."""


def train_line(settings: Settings, parts: Parts, steps: int, lr_decay_sum: float) -> str:
    """Optimizer, schedule, steps, and how much weight decay can shrink the weights at all."""
    options, optimizer, scheduler = settings.trainer, settings.optimizer, settings.scheduler
    if not steps:
        return f"nothing is trained; {calibrate_line(settings)}"
    apart = options.devices != 1 and any(isinstance(module, BATCH_NORM) for module in parts.model.modules())
    return (
        f"{optimizer.name} lr {optimizer.lr:g}, weight decay {optimizer.weight_decay:g} "
        f"(lr x decay sums to {lr_decay_sum:.3g}), {scheduler.name}; {counted(options.epochs, 'epoch')} "
        f"= {counted(steps, 'step')}, "
        f"{'fp32' if options.precision == '32' else options.precision}, "
        f"{options.devices} x {options.accelerator}{BY_PROCESS * apart}, "
        f"{counted(options.threads, 'thread')}"
    )


def teacher_line(chosen: Distill, parts: Parts) -> str:
    """Who teaches, what is compared, and how much disk its logits take where they are kept."""
    assert parts.teacher is not None
    said = parts.teacher.describe()
    losses = " + ".join(f"{term.weight:g} {name}" for name, term in chosen.losses.items() if term.weight)
    quantizer = (said.get("quantizer") or {}).get("name")
    what = ", ".join(str(word) for word in (said["kind"], said.get("model"), quantizer) if word)
    kept = ""
    if chosen.cache and (distiller := parts.task.distiller) is not None:
        kept = f"; its logits take {size(cache_bytes(distiller, parts.data))} on disk"
    return f"{said['path']} ({what}); loss {losses}{kept}"
