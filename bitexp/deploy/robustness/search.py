"""Flips of stored bits: those that an attacker would choose, and those of chance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bitexp.common.randomness import generator
from bitexp.deploy.robustness.stored import Gradients, Place, Stored
from bitexp.deploy.score import Samples, Score
from bitexp.tasks.objectives import cross_entropy

AT_ONCE = 16
"""Bits of a tensor that are flipped together at most where fewer raise no loss."""


@dataclass(frozen=True)
class Attack:
    """What a search flipped, in order, and the score after each of its steps."""

    places: list[Place]
    scores: list[Score]
    reached: bool
    """Whether the aim was reached within the flips allowed."""


def progressive_search(
    stored: Stored,
    names: list[str],
    batch: Samples,
    score: Callable[[], Score],
    reached: Callable[[Score], bool],
    most: int,
) -> Attack:
    """Progressive bit search (Rakin et al. 2019, arXiv 1903.12269, section 4), on bits as they are stored.

    In each step the bits that raise the loss of the batch most to first order are flipped in one tensor at a
    time and the loss is measured; those of the tensor with the largest loss stay flipped. One bit of a
    tensor is tried, and more where no tensor raises the loss. The paper takes the candidates from the ten
    weights of largest gradient and looks at bits of two's complement; here all bits are candidates, by what
    their flip does to all weights that are stored in the byte. The flips stay.

    Args:
        names: the tensors that are attacked. score: of the model as it is. reached: whether that will do.
        most: flips at most.
    """
    places: list[Place] = []
    scores: list[Score] = []
    loss, rises = step_gains(stored, names, batch)
    while len(places) < most:
        best: tuple[float, list[Place]] | None = None
        count = 1
        while best is None and count <= min(AT_ONCE, most - len(places)):
            for name, gains in rises.items():
                chosen = candidates(name, gains, count)
                if len(chosen) < count:
                    continue
                with flipped(stored, chosen):
                    there = orderly(batch.score(stored.model).loss)
                if there > loss and (best is None or there > best[0]):
                    best = there, chosen
            count += 1
        if best is None:
            return Attack(places, scores, False)
        stored.flip(best[1])
        places += best[1]
        scores.append(score())
        if reached(scores[-1]):
            return Attack(places, scores, True)
        loss, rises = step_gains(stored, names, batch)
    return Attack(places, scores, False)


def step_gains(stored: Stored, names: list[str], batch: Samples) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gains of the bits of each tensor that it depends on."""
    inputs = batch.inputs
    if inputs.is_floating_point():
        inputs = inputs.detach().requires_grad_()
    with Gradients(stored) as gradients:
        loss = cross_entropy(stored.model(inputs).float(), batch.targets)
        found = gradients.of(loss)
    return orderly(float(loss.detach())), {name: stored.gains(name, found) for name in names if name in found}


def candidates(name: str, gains: torch.Tensor, count: int) -> list[Place]:
    """The bits of a tensor with the largest gains `[bytes, 8]`, of those that have any."""
    values, numbers = gains.flatten().topk(min(count, gains.numel()))
    return [Place(name, *divmod(int(n), 8)) for v, n in zip(values, numbers, strict=True) if v > 0]


def orderly(loss: float) -> float:
    """A loss that can be compared: no number is worse than any."""
    return math.inf if math.isnan(loss) else loss


def random_places(stored: Stored, names: list[str], count: int, seed: int) -> list[Place]:
    """So many different bits of some tensors, at random; all where there are fewer."""
    total, numbers = stored.bits(names), set[int]()
    draws = generator("flips", seed)
    while len(numbers) < min(count, total):  # distinct: a bit that is flipped twice is none
        numbers.add(int(torch.randint(total, (), generator=draws)))
    return [stored.place(names, number) for number in sorted(numbers)]


@contextlib.contextmanager
def flipped(stored: Stored, places: list[Place]) -> Iterator[None]:
    """Bits are flipped as long as this is open."""
    stored.flip(places)
    try:
        yield
    finally:
        stored.flip(places)
