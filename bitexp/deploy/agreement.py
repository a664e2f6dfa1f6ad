"""How far an engine agrees with bitexp on the same held-out data, and where it would count as another model.

An activation code that falls on the other side of a half moves logits by about a hundredth, so that bits
cannot be promised across engines; what is promised is below, in `flaws`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.deploy.engines.engine import Text

Outputs = Callable[[Tensor], Tensor]

MARGIN_OF_TOKENS, MARGIN_OF_CLASSES = 0.1, 1e-3
"""Where the two best logits lie further apart than this, the best must be the same one."""
BITS, DIVERGENCE = 0.002, 1e-3
"""How far bits per byte may differ, and how far distributions may diverge, in nats a token on average."""


@dataclass
class Agreement:
    """An engine beside bitexp, over all predictions of some batches.

    Sums are over predictions: tokens of a text, or images.
    """

    margin: float
    count: int = 0
    unsure: int = 0
    """Predictions of bitexp's with a smaller margin than `margin`."""
    other: int = 0
    """Where the best of the engine is another one."""
    other_though_sure: int = 0
    divergence: float = 0.0
    """KL(bitexp || engine) in nats."""
    squares: float = 0.0
    """Squared differences of logits, each prediction's mean."""
    largest: float = 0.0
    losses: tuple[float, float] = (0.0, 0.0)
    """Cross entropy in nats: of bitexp, of the engine."""
    right: tuple[int, int] = (0, 0)
    seconds: tuple[float, float] = (0.0, 0.0)
    text: Continuation | None = None

    def add(self, ours: Tensor, theirs: Tensor, targets: Tensor) -> None:
        """Takes in logits `[..., classes]` of both, in fp32, and the targets `[...]`."""
        ours, theirs = ours.flatten(0, -2).double(), theirs.flatten(0, -2).double()
        targets = targets.flatten()
        best, second = ours.topk(2, -1).values.unbind(-1)
        sure, other = best - second > self.margin, ours.argmax(-1) != theirs.argmax(-1)
        self.count += len(ours)
        self.unsure += int((~sure).sum())
        self.other += int(other.sum())
        self.other_though_sure += int((other & sure).sum())
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        self.divergence += float(F.kl_div(q, p, reduction="sum", log_target=True))
        self.squares += float((ours - theirs).square().mean(-1).sum())
        self.largest = max(self.largest, float((ours - theirs).abs().max()))
        both = (ours, theirs)
        found = [float(F.cross_entropy(logits, targets, reduction="sum")) for logits in both]
        self.losses = (self.losses[0] + found[0], self.losses[1] + found[1])
        hits = [int((logits.argmax(-1) == targets).sum()) for logits in both]
        self.right = (self.right[0] + hits[0], self.right[1] + hits[1])

    @property
    def rms(self) -> float:
        """The root of the mean square by which logits are apart."""
        return (self.squares / self.count) ** 0.5

    def bits_per_byte(self, bytes_per_token: float) -> tuple[float, float]:
        """Of bitexp and of the engine."""
        ours, theirs = (loss / self.count / math.log(2) / bytes_per_token for loss in self.losses)
        return ours, theirs

    def flaws(self, bytes_per_token: float | None) -> list[str]:
        """What a true export would not show; `bytes_per_token` for text, None for images."""
        found = []
        if self.other_though_sure:
            found.append(
                f"{self.other_though_sure:,} of {self.count:,} predictions are others though the margin "
                "exceeds "
                f"{self.margin:g}"
            )
        if bytes_per_token is None:
            return found
        ours, theirs = self.bits_per_byte(bytes_per_token)
        if abs(ours - theirs) >= BITS:
            found.append(f"{theirs:.4f} bits per byte instead of {ours:.4f}")
        if self.divergence / self.count >= DIVERGENCE:
            found.append(f"a divergence of {self.divergence / self.count:.2g} nats a token")
        if self.text is not None and self.text.flaw(self.margin):
            found.append(str(self.text.flaw(self.margin)))
        return found


@dataclass
class Continuation:
    """A text that both write, always the likeliest token."""

    tokens: int
    place: int | None = None
    """The first token that differs."""
    margin: float = field(default=math.inf)
    """Of bitexp's two best logits there."""

    def flaw(self, margin: float) -> str | None:
        """What is wrong with it, where anything is."""
        if self.place is None or self.margin <= margin:
            return None
        return f"its text differs from token {self.place} on, where the margin is {self.margin:.2g}"


def agreement(
    ours: Outputs, theirs: Outputs, batches: Iterable[tuple[Tensor, Tensor]], margin: float
) -> Agreement:
    """Runs both over batches of inputs and targets."""
    found = Agreement(margin)
    for inputs, targets in batches:
        began = time.monotonic()
        with torch.no_grad():
            expected = ours(inputs).float()
        between = time.monotonic()
        there = theirs(inputs)
        found.seconds = (found.seconds[0] + between - began, found.seconds[1] + time.monotonic() - between)
        found.add(expected, there, targets)
    return found


class Anew:
    """A text that is computed anew for every token (see `Text`)."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs, self.tokens = outputs, list[int]()

    def read(self, tokens: Sequence[int]) -> Tensor:
        self.tokens += tokens
        return self.outputs(torch.tensor([self.tokens]))[0, -1]


def continuation(ours: Text, theirs: Text, prompt: Sequence[int], tokens: int) -> Continuation:
    """Continues a prompt in two new texts, up to the first token that differs."""
    unread = list(prompt)
    for place in range(tokens):
        with torch.no_grad():
            logits = ours.read(unread).float()
        best = int(logits.argmax())
        if int(theirs.read(unread).argmax()) != best:
            first, second = logits.topk(2).values.tolist()
            return Continuation(tokens, place, first - second)
        unread = [best]
    return Continuation(tokens)
