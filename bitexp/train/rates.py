"""Learning rate, weight decay and lambda as pure functions of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math

from bitexp.config.optimization import Constant, Cosine, Optimizer, TwoStage
from bitexp.config.schema import LambdaSchedule


def lr_factor(settings: Cosine | Constant | TwoStage, step: int, total: int) -> float:
    """Share of the peak learning rate at a step (0-based) of `total`.

    Linear warm-up over the share `warmup`, then: cosine to the share `final`; or constant; or, after
    "Training Tips" of BitNet b1.58, a linear decay to 0 over the whole run whose peak is cut to
    `second_peak` from `switch_at` on.
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(settings, Constant):
        return 1.0
    share = (step - warmup) / max(1, total - warmup)
    if isinstance(settings, Cosine):
        return settings.final + (1 - settings.final) * (1 + math.cos(math.pi * share)) / 2
    peak = settings.second_peak if step >= settings.switch_at * total else 1.0
    return peak * (1 - share)


def weight_decay_at(settings: Cosine | Constant | TwoStage, base: float, step: int, total: int) -> float:
    """Weight decay at a step: constant, but for the second of two stages."""
    if isinstance(settings, TwoStage) and step >= settings.switch_at * total:
        return settings.second_weight_decay
    return base


def lr_decay_sum(settings: Cosine | Constant | TwoStage, optimizer: Optimizer, total: int) -> float:
    """Learning rate times weight decay, summed over the steps: AdamW shrinks weights by exp(-sum) at most.

    Without it a weight decay means nothing: 0.1 over a short training does not show.
    """
    return sum(
        optimizer.lr
        * lr_factor(settings, step, total)
        * weight_decay_at(settings, optimizer.weight_decay, step, total)
        for step in range(total)
    )


def lambda_at(settings: LambdaSchedule | None, step: int, total: int) -> float:
    """How far quantization is phased in at a step: 0 before the share `start`, 1 from `end` on.

    linear and sigmoid (steepness 10, arXiv 2502.11895 and the "1.58-bit fine-tuning" recipe) run
    between the two; step switches at `end` (continual QAT); constant is 1 throughout.
    """
    if settings is None or settings.name == "constant":
        return 1.0
    share = step / max(1, total)
    if share >= settings.end:
        return 1.0
    if share < settings.start or settings.name == "step":
        return 0.0
    t = (share - settings.start) / (settings.end - settings.start)
    if settings.name == "linear":
        return t
    edge = math.tanh(2.5)
    return (1 + math.tanh(5 * (t - 0.5)) / edge) / 2  # the logistic curve, stretched to 0..1


def switch_step(settings: LambdaSchedule | None, total: int) -> int:
    """The step at which quantization begins: 0 where the training is quantized from the start."""
    return next(step for step in range(total + 1) if step == total or lambda_at(settings, step, total) > 0)
