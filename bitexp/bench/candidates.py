"""One training step of the same model at every precision, interleaved."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.bench.workloads import WORKLOADS, tokens
from bitexp.common.errors import UserError
from bitexp.common.signatures import keywords
from bitexp.config.compose import composed
from bitexp.config.schema import Settings, read_settings
from bitexp.deploy.cost import saved_bytes
from bitexp.kernels import choose_kernel
from bitexp.models import MODELS
from bitexp.quant.convert import matches, quantize
from bitexp.quant.layers import QuantizedLayer, set_backend
from bitexp.run.build import accepted

FULL, CONTROL = "full", "full_norm"
"""What steps are measured by, and what the memory of layers is: no norm, and norms, without quantization."""

DATA = ("classes", "context", "vocabulary")
"""What of the options a model learns of its data, beside the shape of an image; other words are its own."""

PEER = "bitlinear 2.4.6"
BF16 = " bf16"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model with its optimizer, and the function that makes one step, under autocast to `dtype`."""

    name: str
    model: nn.Module
    inputs: Tensor
    dtype: torch.dtype | None
    step: Callable[[], None]
    forward: Callable[[], Tensor]


@dataclass(frozen=True)
class Workload:
    """A model to make, an input, and the loss of its output; `kept` are the layers not to quantize."""

    make: Callable[[], nn.Module]
    inputs: Tensor
    loss: Callable[[Tensor], Tensor]
    kept: list[str]


def candidates(options: argparse.Namespace) -> list[Candidate]:
    """The precisions, always the two that others are measured by, and the peer where it is installed.

    Each of ours a second time under bf16 autocast, as `trainer.precision=bf16-mixed` has it.
    """
    work = bare(options) if options.model in WORKLOADS else configured(options)
    found = []
    kernel, _, _ = choose_kernel(options.kernel, "cpu")
    for dtype, suffix in ((None, ""), (torch.bfloat16, BF16)):
        for name in dict.fromkeys((FULL, CONTROL, *options.quantizers)):
            model = work.make()
            quantize(model, name, exclude=work.kept)
            set_backend(model, kernel.backend)
            found.append(candidate(name + suffix, model, work, dtype))
    found += [candidate(name, model, work, None) for name, model in peers(work).items()]
    return found


def bare(options: argparse.Namespace) -> Workload:
    """A network of `bitexp.bench.workloads`."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return WORKLOADS[options.model]()

    return Workload(make, tokens(options.batch), lambda y: y.square().mean(), [])


def configured(options: argparse.Namespace) -> Workload:
    """A model of conf/model, on random images or tokens in its shapes."""
    settings = settings_of(options.model, "full")
    reads_text = "vocabulary" in keywords(MODELS.get(settings.model.name))
    if reads_text:
        shape = (options.batch, options.context)
        inputs, targets = (torch.randint(options.vocabulary, shape) for _ in range(2))
    else:
        inputs = torch.randn(options.batch, *options.shape)
        targets = torch.randint(0, options.classes, (options.batch,))

    def loss(y: Tensor) -> Tensor:
        return F.cross_entropy(y.flatten(0, -2), targets.flatten())

    exclude = settings.quantizer.exclude
    return Workload(functools.partial(build_model, settings, options), inputs, loss, exclude)


def settings_of(model: str, quantizer: str) -> Settings:
    """The settings for a model at a precision."""
    return read_settings(composed([f"model={model}", f"quantizer={quantizer}"]))


def build_model(settings: Settings, options: argparse.Namespace) -> nn.Module:
    """The same initial weights every time."""
    torch.manual_seed(0)
    target = MODELS.get(settings.model.name)
    facts = {name: getattr(options, name) for name in DATA} | {"shape": tuple(options.shape)}
    try:
        return target(**accepted(target, facts), **settings.model.arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


def peers(work: Workload) -> dict[str, nn.Module]:
    """The model with PyPI bitlinear's layers in our body's place, by both of its scales, where installed."""
    try:
        import bitlinear
    except ImportError:
        return {}
    found = {}
    for name, measure in ((PEER, "AbsMean"), (f"{PEER} median", "AbsMedian")):
        model = work.make()
        for path, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and not matches(path, work.kept):
                bias = layer.bias is not None
                new = bitlinear.BitLinear(
                    layer.in_features, layer.out_features, bias=bias, weight_measure=measure
                )
                new.load_state_dict(layer.state_dict())
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, new)
        found[name] = model
    return found


def candidate(name: str, model: nn.Module, work: Workload, dtype: torch.dtype | None) -> Candidate:
    """With AdamW, one fused step per call; under autocast where a dtype is given."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def forward() -> Tensor:
        with autocast(dtype):
            y = model(work.inputs)
        return work.loss(y.float())

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return Candidate(name, model, work.inputs, dtype, step, forward)


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    """As the trainer has it; none without a dtype."""
    return torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)


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


def measure(candidates: list[Candidate], rounds: int) -> dict[str, Cost]:
    """Makes `rounds` steps with each candidate, in turn."""
    times: dict[str, list[float]] = {c.name: [] for c in candidates}
    for c in candidates:
        c.step()
        c.step()
    for _ in range(rounds):
        for c in candidates:
            start = time.thread_time()
            c.step()
            times[c.name].append(time.thread_time() - start)
    result = {}
    for c in candidates:
        ratios = [a / b for a, b in zip(times[c.name], times[FULL], strict=True)]
        median = statistics.median(times[c.name])
        held = saved_bytes(c.forward, c.model, None)
        result[c.name] = Cost(median, statistics.median(ratios), held, layer_bytes(c))
    return result


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
        with autocast(c.dtype):
            total += saved_bytes(functools.partial(layer, x), layer, x)
    return total
