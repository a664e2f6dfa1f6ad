"""In what a student follows its teacher: `distill.losses` names the terms, which are summed by weight.

A new one is one class: it gets what was seen of both networks while they ran on the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bitexp.common.registry import Registry
from bitexp.quant.modes import no_autocast

LOSSES: Registry[type[DistillationLoss]] = Registry("distillation loss")

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Seen:
    """What was seen of a network that ran on a batch.

    Args:
        logits: `[..., classes]`, in fp32.
        states: of each of its parts that a loss looks at, by depth (`bitexp.models.taps`).
        heads: of its attention, where it has any.
    """

    logits: Tensor
    states: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    heads: int | None = None


class DistillationLoss:
    """One term; keyword arguments of a subclass come from its section of the YAML.

    Args:
        weight: the term's factor in the sum; 0 switches it off. `train/NAME` is logged without it.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    """What it looks at beside the logits, by the words of a model's `taps`."""

    def __init__(self, *, weight: Weight = 1.0) -> None:
        self.weight = weight

    def check(self, student: Seen, teacher: Seen) -> None:
        """Raises `ValueError` where the two cannot be compared, from what was seen of a batch of two."""

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        """The term, a scalar in fp32."""
        raise NotImplementedError


@LOSSES.register("logits")
class LogitsLoss(DistillationLoss):
    """KL(teacher || student) of what both predict at a temperature, the mean over images or tokens.

    At temperature 1 its gradient is that of the cross entropy with the teacher's predictions as targets
    (FBI-LLM, ReActNet, OneBit).

    Args:
        temperature: divides the logits of both.
        t_squared: multiplies by its square, so that gradients do not shrink with it (arXiv 1503.02531,
            section 2); BitNet Distillation (arXiv 2510.13998) does not.
    """

    def __init__(
        self, *, weight: Weight = 1.0, temperature: Temperature = 1.0, t_squared: bool = False
    ) -> None:
        super().__init__(weight=weight)
        self.temperature = temperature
        self.factor = temperature**2 if t_squared else 1.0

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        of_student, of_teacher = (
            (seen.logits / self.temperature).log_softmax(-1).flatten(0, -2) for seen in (student, teacher)
        )
        return self.factor * F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)


@LOSSES.register("hidden")
class HiddenLoss(DistillationLoss):
    """Squared distances of hidden states, the mean over images or tokens, summed over layers.

    Args:
        layers: those that are compared, by number, negative ones from the end; `all` where both networks have
            as many.
        normalize: each state to length 1, as in OneBit (arXiv 2402.11295, equation 9); without, the distance
            is a mean over features.
    """

    parts = ("hidden",)

    def __init__(
        self, *, weight: Weight = 1.0, layers: Literal["all"] | list[int] = "all", normalize: bool = True
    ) -> None:
        super().__init__(weight=weight)
        self.layers, self.normalize = layers, normalize

    def check(self, student: Seen, teacher: Seen) -> None:
        counts = [len(seen.states["hidden"]) for seen in (student, teacher)]
        if self.layers == "all" and counts[0] != counts[1]:
            raise ValueError(
                f"hidden.layers=all compares layer by layer, and the student has {counts[0]} and the teacher "
                f"{counts[1]}; name those to compare, such as layers=[-1]"
            )
        for layer in [] if self.layers == "all" else self.layers:
            check_layer("hidden.layers", layer, min(counts))
        for one, other in self.pairs(student, teacher):
            if one.shape != other.shape:
                raise ValueError(
                    f"hidden states are compared one by one, and the student's are {list(one.shape[1:])} and "
                    f"the teacher's {list(other.shape[1:])}; use logits, which need no common width"
                )

    def pairs(self, student: Seen, teacher: Seen) -> list[tuple[Tensor, Tensor]]:
        """The states to compare."""
        one, other = student.states["hidden"], teacher.states["hidden"]
        layers = range(len(one)) if self.layers == "all" else self.layers
        return [(one[layer], other[layer]) for layer in layers]

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        return torch.stack([self.distance(*pair) for pair in self.pairs(student, teacher)]).sum()

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Of two states `[B, T, D]` or `[B, D]`, or `[B, D, H, W]` of convolutions."""
        features = 1 if one.dim() == 4 else -1
        one, other = one.float(), other.float()
        if not self.normalize:
            return F.mse_loss(one, other)
        gap = F.normalize(one, dim=features) - F.normalize(other, dim=features)
        return gap.square().sum(features).mean()


@LOSSES.register("attention")
class AttentionLoss(DistillationLoss):
    """How tokens relate in the attention of one layer: BitNet Distillation (arXiv 2510.13998), algorithm 1.

    Queries, keys and values are each cut into `heads` heads and normalized to length 1; the relations of a
    token are the softmax over all tokens of its products with them. The term is the KL divergence from the
    teacher's relations, a mean over tokens and heads, summed over the three. No causal mask, as there. Widths
    and heads of the two networks may differ.

    Args:
        layer: whose states are looked at, negative from the end.
        heads: to cut the states into; null: as many as the student has.
        temperature: divides the products.
    """

    parts = ("query", "key", "value")

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        layer: int = -1,
        heads: Annotated[int, Field(ge=1)] | None = None,
        temperature: Temperature = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        self.layer, self.heads, self.temperature = layer, heads, temperature

    def check(self, student: Seen, teacher: Seen) -> None:
        heads = self.heads or student.heads
        if heads is None:
            raise ValueError("attention.heads=null takes those of the student, and it has none")
        check_layer("attention.layer", self.layer, min(len(s.states["query"]) for s in (student, teacher)))
        for part in self.parts:
            one, other = (seen.states[part][self.layer] for seen in (student, teacher))
            if one.shape[:-1] != other.shape[:-1]:
                raise ValueError(
                    f"relations of attention are compared token by token, and the student has {one.shape[1]} "
                    f"of them and the teacher {other.shape[1]}"
                )
            for who, states in (("student", one), ("teacher", other)):
                if states.shape[-1] % heads:
                    raise ValueError(
                        f"the {part} states of the {who} are {states.shape[-1]} wide and cannot be cut into "
                        f"{heads} heads; choose attention.heads so that it divides the widths of both"
                    )

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        heads = self.heads or student.heads
        assert heads is not None, "see check"
        terms = []
        for part in self.parts:
            of_student, of_teacher = (
                self.relations(seen.states[part][self.layer].float(), heads).flatten(0, -2)
                for seen in (student, teacher)
            )
            terms.append(F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True))
        return torch.stack(terms).sum()

    def relations(self, states: Tensor, heads: int) -> Tensor:
        """States `[B, T, D]` -> the logarithms of their relations `[B, heads, T, T]`."""
        with no_autocast(states):
            cut = F.normalize(states.unflatten(-1, (heads, -1)).transpose(1, 2), dim=-1)
            return (cut @ cut.mT / self.temperature).log_softmax(-1)


def check_layer(key: str, layer: int, count: int) -> None:
    """Raises `ValueError` for a layer that is not among `count`."""
    if not -count <= layer < count:
        raise ValueError(f"{key}={layer} is no layer of both networks: there are {count}")
