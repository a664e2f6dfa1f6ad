"""What a training loss is made of: `task.objectives` names its terms, which are summed by weight.

A new term is one class: it gets the outputs of the model, the batch and the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.registry import Registry
from bitexp.config.arguments import check_arguments

CROSS_ENTROPY: Mapping[str, Mapping[str, Any]] = {"cross_entropy": {}}
"""Where nothing else is said."""

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]

OBJECTIVES: Registry[type[Objective]] = Registry("objective")


class Trained(Protocol):
    """What an objective may ask of a task."""

    model: nn.Module
    label_smoothing: float


class Objective:
    """One term of a training loss; keyword arguments of a subclass come from its section of the YAML.

    Args:
        weight: the term's factor in the sum. `train/NAME` is logged without it.
    """

    def __init__(self, *, weight: Weight = 1.0) -> None:
        self.weight = weight

    def __call__(self, outputs: Tensor, batch: tuple[Tensor, Tensor], task: Trained) -> Tensor:
        """The term, a scalar in fp32.

        Args:
            outputs: of the model, in fp32.
            batch: what it was trained on, augmented; inputs and targets.
            task: with its model, whose weights a term may be about.
        """
        raise NotImplementedError


@OBJECTIVES.register("cross_entropy")
class CrossEntropy(Objective):
    """The mean surprise at the targets, smoothed by the `label_smoothing` of the task where it has one."""

    def __call__(self, outputs: Tensor, batch: tuple[Tensor, Tensor], task: Trained) -> Tensor:
        return cross_entropy(outputs, batch[1], task.label_smoothing)


@OBJECTIVES.register("binary_cross_entropy")
class BinaryCrossEntropy(Objective):
    """Every class is a question of its own: the mean over classes (ResNet strikes back, arXiv 2110.00476).

    Of mixed images all classes count as present whose share is above `threshold`. The `label_smoothing` of
    the task moves targets towards the same share of every class, as in timm.
    """

    def __init__(self, *, weight: Weight = 1.0, threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__(weight=weight)
        self.threshold = threshold

    def __call__(self, outputs: Tensor, batch: tuple[Tensor, Tensor], task: Trained) -> Tensor:
        targets, classes = batch[1], outputs.shape[-1]
        if targets.is_floating_point():
            present = (targets > self.threshold).float()
        else:
            present = F.one_hot(targets, classes).float()
        smoothed = present * (1 - task.label_smoothing) + task.label_smoothing / classes
        return F.binary_cross_entropy_with_logits(outputs, smoothed)


@OBJECTIVES.register("z_loss")
class ZLoss(Objective):
    """The mean of log^2 Z, where Z is the sum that the softmax divides by: it keeps logits near 0.

    PaLM (arXiv 2204.02311, section 5) trains with a weight of 1e-4.
    """

    def __init__(self, *, weight: Weight = 1e-4) -> None:
        super().__init__(weight=weight)

    def __call__(self, outputs: Tensor, batch: tuple[Tensor, Tensor], task: Trained) -> Tensor:
        return outputs.logsumexp(-1).square().mean()


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over all of `outputs` `[..., classes]`; `targets` are `[...]`, or shares `[..., classes]`."""
    shares = targets.is_floating_point()
    targets = targets.flatten(0, -2) if shares else targets.flatten()
    return F.cross_entropy(outputs.flatten(0, -2), targets, label_smoothing=label_smoothing)


def build_objectives(chosen: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Objective]:
    """The terms by name, in the order of the YAML; null switches one off.

    Raises:
        UserError: there are none, or arguments that they do not take.
    """
    if not any(arguments is not None for arguments in chosen.values()):
        known = ", ".join(OBJECTIVES.names())
        raise UserError(f"task.objectives is empty, so there is nothing to minimize. Known: {known}")
    built = {}
    for name, arguments in chosen.items():
        target = OBJECTIVES.get(name)
        if arguments is None:
            continue
        built[name] = target(**check_arguments(f"task.objectives.{name}", target, arguments))
    return built
