"""Tokens from a decoder, one by one: the likeliest, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitexp.models.decoder import Cache, Decoder


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits.

    Args:
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: draw among the k most likely; None: all.
        top_p: draw among the most likely that together have this probability (arXiv 1904.09751); None: all.
        seed: of the draws.

    A value out of its range raises `ValueError`.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise ValueError("temperature=0 takes the most likely token, so top_k and top_p would do nothing")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} must be at least 0 and below 2**64")

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from, `[vocabulary]`, for a temperature above 0: top-k first, top-p of the rest."""
        logits = logits.double()
        logits = ((logits - logits.max()) / self.temperature).float()  # none is inf, however low it is
        if self.top_k is not None and self.top_k < len(logits):
            least = logits.topk(self.top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        shares = logits.softmax(-1)
        if self.top_p is None:
            return shares
        ordered, order = shares.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # of the more likely ones: the first is always kept
        kept = ordered.masked_fill(before >= self.top_p, 0.0)
        return torch.zeros_like(shares).scatter(-1, order, kept / kept.sum())

    def draws(self, device: torch.device) -> torch.Generator:
        """The generator that all draws of one text come from."""
        return torch.Generator(device).manual_seed(self.seed)

    def choose(self, logits: Tensor, draws: torch.Generator) -> int:
        """The next token's id from its logits `[vocabulary]`."""
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits), 1, generator=draws))


@torch.inference_mode()
def generate(model: Decoder, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """The tokens that follow upon a prompt, without end: stop asking when there are enough.

    The prompt is read in one pass, its last `context` tokens where it is longer. When the context is
    full, the later half of it is read anew and generation goes on from there.

    Raises:
        ValueError: the prompt is empty.
    """
    if not prompt:
        raise ValueError("the prompt is empty: give at least one token")
    device = model.embed.weight.device
    draws = sampling.draws(device)
    tokens = list(prompt[-model.context :])
    cache, unread = Cache(model), tokens
    while True:
        logits = model(torch.tensor([unread], device=device), cache)[0, -1]
        tokens.append(sampling.choose(logits, draws))
        yield tokens[-1]
        unread = tokens[-1:]
        if len(tokens) > model.context:
            tokens = tokens[-max(1, model.context // 2) :]
            cache, unread = Cache(model), tokens
