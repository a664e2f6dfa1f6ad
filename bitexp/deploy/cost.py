"""What a network costs: operations of one inference by kind, weights by part, memory of a training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bitexp.quant.layers import QuantizedLayer

KINDS = ("fp32_add", "fp32_mul", "int8_add", "int8_mul", "body_macs")
"""What is counted of a layer."""


@torch.no_grad()
def operations(model: nn.Module, inputs: Tensor, body: Collection[str]) -> dict[str, float]:
    """Additions and multiplications in the products of one forward, by the arithmetic they need.

    Args:
        inputs: a batch; body: the names of the quantized layers.

    Returns:
        `fp32_add`, `fp32_mul`, `int8_add`, `int8_mul` over the whole batch, and `body_macs`,
        `total_macs`. Counted as in BitNet (arXiv 2310.11453, section 3.1): a layer with codes -1, 0, 1
        and int8 activations needs an int8 addition for each multiply-accumulate, and two multiplications
        in fp32 for its scales, one for each input and one for each output (of each plane). Wider codes need
        an int8 multiplication each. Weights that are zero by the rule of their quantizer cost nothing, those
        that happen to be zero do. Everything else (the head, products between activations) is in fp32.
        Elementwise work (norms, activations, residuals) is not counted, there as here.
    """
    counts = dict.fromkeys(KINDS, 0.0)
    layers = {name: model.get_submodule(name) for name in body}

    def count(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
        for kind, number in operations_of(layer, given[0].numel(), output.numel()).items():
            counts[kind] += number

    hooks = [layer.register_forward_hook(count) for layer in layers.values()]
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(inputs)  # the other backends of attention are not counted by torch
    finally:
        for hook in hooks:
            hook.remove()
    by_module = counter.get_flop_counts()
    root = type(model).__name__
    inside = sum(sum(by_module.get(f"{root}.{name}", {}).values()) for name in layers)
    rest = (counter.get_total_flops() - inside) / 2
    for kind in ("fp32_add", "fp32_mul"):
        counts[kind] += rest
    return {**counts, "total_macs": counts["body_macs"] + rest}


def operations_of(layer: Any, inputs: int, outputs: int) -> dict[str, float]:
    """The operations of one layer by kind, as `operations` counts them, for so many inputs and outputs."""
    counts = dict.fromkeys(KINDS, 0.0)
    macs = outputs * layer.weight[0].numel()
    counts["body_macs"] = macs
    spec = layer.spec if isinstance(layer, QuantizedLayer) else None
    if spec is None or spec.weights is None:
        counts["fp32_add"] = counts["fp32_mul"] = macs
        return counts
    kind = "fp32" if spec.activations is None else "int8"
    if spec.shift:  # the sum of the inputs of each token or patch, and a product with it for each output
        counts[f"{kind}_add"] += macs / len(layer.weight)
        counts["fp32_mul"] += outputs
    macs *= layer.parts.weights.density
    counts[f"{kind}_add"] += macs
    if spec.levels.largest > 1:
        counts[f"{kind}_mul"] += macs
    counts["fp32_mul"] += spec.levels.planes * outputs + (inputs if spec.activations else 0)
    return counts


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module, given: Tensor | None) -> int:
    """Bytes that autograd holds after a forward, each storage once; parameters and `given` left out."""
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    own |= set() if given is None else {given.untyped_storage().data_ptr()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    total = sum(held.values())
    output.sum().backward()
    return total


def costs(
    model: nn.Module, inputs: Tensor, body: Collection[str], amount: int, batch_size: int
) -> dict[str, float]:
    """What a run records: `cost/*`, `memory/saved_bytes`, `size/*_weights`, and the bits of the body.

    Args:
        inputs: one sample, as a batch; amount: the images or tokens in it, for each of which the
            operations are given; batch_size: of the training step whose memory is told.
    """
    counted = operations(model, inputs, body)
    weights = {
        "body": sum(model.get_parameter(f"{name}.weight").numel() for name in body),
        "total": sum(p.numel() for p in model.parameters()),
    }
    found = {f"cost/{name}": value / amount for name, value in counted.items()}
    found |= {f"size/{part}_weights": float(number) for part, number in weights.items()}
    found |= body_bits(model, body)
    return found | {"memory/saved_bytes": step_bytes(model, inputs, batch_size)}


def body_bits(model: nn.Module, body: Collection[str]) -> dict[str, float]:
    """`size/weight_bits` and `size/activation_bits`: means over the weights of the body.

    Of weights it is the information in their codes, 1.58 of ternary ones; scales are not counted. Of
    activations it is the width of their codes. What stays in floats has 32.
    """
    counts = [model.get_parameter(f"{name}.weight").numel() for name in body]
    widths = [bits(model.get_submodule(name)) for name in body]
    if not counts:
        return {}
    weights, activations = (
        sum(count * width for count, width in zip(counts, column, strict=True)) / sum(counts)
        for column in zip(*widths, strict=True)
    )
    return {"size/weight_bits": weights, "size/activation_bits": activations}


def bits(layer: nn.Module) -> tuple[float, int]:
    """Bits of a weight and of an activation."""
    if not isinstance(layer, QuantizedLayer) or layer.spec.weights is None:
        return 32, 32
    activations = layer.spec.activations
    return bits_per_weight(layer), 32 if activations is None else math.ceil(activations.levels.bits)


def bits_per_weight(layer: QuantizedLayer) -> float:
    """Bits of information in a weight."""
    weights = layer.parts.weights
    return weights.levels.bits if weights.bits is None else weights.bits


def step_bytes(model: nn.Module, inputs: Tensor, batch_size: int) -> float:
    """Bytes that autograd holds in a training step of `batch_size` samples in fp32.

    Measured at two and at four samples; what a sample adds is the same for each. The model is left
    without gradients, otherwise as it was.
    """
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            two, four = (saved_bytes(partial(model, torch.cat([inputs] * n)), model, None) for n in (2, 4))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        model.zero_grad(set_to_none=True)
    return two + (batch_size - 2) * (four - two) / 2
