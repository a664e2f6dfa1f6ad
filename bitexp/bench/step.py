"""One training step of the same model at every precision, interleaved."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from bitexp.build import accepted
from bitexp.cli import CONF
from bitexp.errors import UserError
from bitexp.kernels import choose_kernel
from bitexp.models import MODELS
from bitexp.quant import QUANTIZERS
from bitexp.quant.convert import matches, quantize
from bitexp.quant.linear import QuantizedLayer, set_product
from bitexp.settings import Settings, keywords, read_settings
from bitexp.sweep.table import order

PEER = "bitlinear 2.4.6"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model with its optimizer, and the function that makes one step."""

    name: str
    model: nn.Module
    inputs: Tensor
    step: Callable[[], None]
    forward: Callable[[], Tensor]


def candidates(options: argparse.Namespace) -> list[Candidate]:
    """Every registered quantizer that has a YAML of its name, and the peer where it is installed."""
    found = []
    batch = random_batch(options)
    names = [name for name in QUANTIZERS.names() if (CONF / "quantizer" / f"{name}.yaml").exists()]
    for name in sorted(names, key=order):
        settings = composed(options.model, name)
        model = build_model(settings, options)
        quantizer = QUANTIZERS.get(name)(**settings.quantizer.arguments)
        quantize(model, quantizer, settings.quantizer.include, settings.quantizer.exclude)
        kernel, _, _ = choose_kernel(options.kernel, "cpu")
        set_product(model, kernel.product, kernel.fused)
        found.append(candidate(name, model, *batch))
    if (peer := peer_model(options)) is not None:
        found.append(candidate(PEER, peer, *batch))
    return found


def reads_text(options: argparse.Namespace) -> bool:
    """Whether the model reads tokens; else it reads images."""
    return "vocabulary" in keywords(MODELS.get(composed(options.model, "full").model.name))


def random_batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Inputs and targets in the model's shapes."""
    if reads_text(options):
        shape = (options.batch, options.context)
        return torch.randint(options.vocabulary, shape), torch.randint(options.vocabulary, shape)
    images = torch.randn(options.batch, *options.shape)
    return images, torch.randint(0, options.classes, (options.batch,))


def composed(model: str, quantizer: str) -> Settings:
    """The settings for a model at a precision."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"model={model}", f"quantizer={quantizer}"])
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return read_settings(resolved)


def build_model(settings: Settings, options: argparse.Namespace) -> nn.Module:
    """The same initial weights every time."""
    torch.manual_seed(0)
    target = MODELS.get(settings.model.name)
    facts = {**vars(options), "shape": tuple(options.shape)}
    try:
        return target(**accepted(target, facts), **settings.model.arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


def peer_model(options: argparse.Namespace) -> nn.Module | None:
    """The model with PyPI bitlinear's mean-scaled layers in our body's place; None where not installed."""
    try:
        import bitlinear
    except ImportError:
        return None
    settings = composed(options.model, "full")
    model = build_model(settings, options)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not matches(name, settings.quantizer.exclude):
            bias = layer.bias is not None
            new = bitlinear.BitLinear(
                layer.in_features, layer.out_features, bias=bias, weight_measure="AbsMean"
            )
            new.load_state_dict(layer.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    return model


def candidate(name: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> Candidate:
    """With AdamW, one fused step per call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def forward() -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return Candidate(name, model, inputs, step, forward)


@dataclass(frozen=True)
class Cost:
    """What a step costs: median CPU seconds, median ratio to `full` in the same round, bytes held.

    `saved` is all that autograd holds between forward and backward; `in_layers` what the layers with a
    norm of their own (quantized ones and the control's) hold besides their input and parameters.
    """

    seconds: float
    ratio: float
    saved: int
    in_layers: int


def measure(found: list[Candidate], rounds: int) -> dict[str, Cost]:
    """Makes `rounds` steps with each candidate, in turn."""
    times: dict[str, list[float]] = {c.name: [] for c in found}
    for c in found:
        c.step()
        c.step()
    for _ in range(rounds):
        for c in found:
            start = time.thread_time()
            c.step()
            times[c.name].append(time.thread_time() - start)
    result = {}
    for c in found:
        ratios = [a / b for a, b in zip(times[c.name], times["full"], strict=True)]
        median = statistics.median(times[c.name])
        held = saved_bytes(c.forward, c.model, None)
        result[c.name] = Cost(median, statistics.median(ratios), held, layer_bytes(c))
    return result


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


def layer_bytes(c: Candidate) -> int:
    """The sum of `saved_bytes` of each layer by itself, at the input it gets in the model."""
    inputs: dict[nn.Module, Tensor] = {}
    layers = [m for m in c.model.modules() if isinstance(m, QuantizedLayer)]
    hooks = [m.register_forward_hook(lambda m, x, y: inputs.update({m: x[0].detach()})) for m in layers]
    c.forward()
    for hook in hooks:
        hook.remove()
    total = 0
    for layer in layers:
        x = inputs[layer].requires_grad_()
        total += saved_bytes(functools.partial(layer, x), layer, x)
    return total
