"""Tokens from a decoder, one by one: the likeliest, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from bitexp.common.errors import Unusable
from bitexp.models.decoder import Cache

FEW = 256
"""How many of the likeliest tokens are looked at first for a nucleus."""


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
        ordered, order = self.likely(shares, self.top_p)
        before = ordered.cumsum(-1) - ordered  # of the more likely ones: the first is always kept
        kept = ordered.masked_fill(before >= self.top_p, 0.0)
        return torch.zeros_like(shares).scatter(-1, order, kept / kept.sum())

    @staticmethod
    def likely(shares: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
        """The largest shares in order and their places: all of them, or a few that have more than `top_p`."""
        if len(shares) > 4 * FEW:  # sorting thousands takes longer than a token
            places = (shares >= shares.topk(FEW).values[-1]).nonzero()[:, 0]
            few = shares[places]
            if float(few.sum()) > top_p + 1e-4:
                ordered, order = few.sort(descending=True, stable=True)
                return ordered, places[order]
        return shares.sort(descending=True, stable=True)

    def draws(self, device: torch.device) -> torch.Generator:
        """The generator that all draws of one text come from."""
        return torch.Generator(device).manual_seed(self.seed)

    def choose(self, logits: Tensor, draws: torch.Generator) -> int:
        """The next token's id from its logits `[vocabulary]`.

        Raises:
            Unusable: the logits are no numbers.
        """
        if self.temperature == 0:
            return int(logits.argmax())
        sums = self.probabilities(logits).cumsum(-1, dtype=torch.float64)
        total = float(sums[-1])
        if not total > 0:
            raise Unusable("the model gives logits that are no numbers, so no token can be drawn")
        drawn = torch.rand((), generator=draws, dtype=torch.float64, device=draws.device) * total
        return min(int(torch.searchsorted(sums, drawn, right=True)), len(sums) - 1)


AHEAD = 8
"""Likeliest tokens that are computed at once where a writer can: Python then costs little of each."""


class Writer(Protocol):
    """What writes: a decoder, or something faster that gives the same logits.

    It may have both of these, for texts of which a single token is unread:

        step(tokens, caches)                the logits `[texts, vocabulary]` after that token of each text
        likeliest(tokens, caches, count)    the next `count` tokens of each text, the likeliest ones
    """

    context: int
    embed: nn.Embedding

    def cache(self) -> Cache:
        """An empty one, for a single text."""

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits `[1, T, vocabulary]` of the tokens `[1, T]` that follow upon those in the cache."""


class Text:
    """A text that is being written upon the tokens of a prompt."""

    def __init__(self, writer: Writer, tokens: Sequence[int], sampling: Sampling) -> None:
        if not tokens:
            raise ValueError("the prompt is empty: give at least one token")
        self.writer, self.sampling = writer, sampling
        self.draws = sampling.draws(writer.embed.weight.device)
        self.tokens = list(tokens[-writer.context :])
        self.cache, self.unread = writer.cache(), self.tokens

    def choose(self, logits: Tensor) -> list[int]:
        """The next token from its logits `[vocabulary]`, in a list."""
        return [self.sampling.choose(logits, self.draws)]

    def add(self, tokens: list[int]) -> list[int]:
        """Adds tokens, the last of them unread. A full context goes on with its later half, read anew."""
        self.tokens += tokens
        self.unread = self.tokens[-1:]
        if len(self.tokens) > self.writer.context:
            self.tokens = self.tokens[-max(1, self.writer.context // 2) :]
            self.cache, self.unread = self.writer.cache(), self.tokens
        return tokens


def following(writer: Writer, texts: Sequence[Text]) -> list[list[int]]:
    """The next tokens of each text, added to it; of all equally many, at least one."""
    if hasattr(writer, "step") and all(len(text.unread) == 1 for text in texts):
        unread, caches = [text.unread[0] for text in texts], [text.cache for text in texts]
        if texts[0].sampling.temperature == 0:
            count = min(AHEAD, *(writer.context - cache.length for cache in caches))
            found = writer.likeliest(unread, caches, count)  # type: ignore[attr-defined]
            return [text.add(tokens) for text, tokens in zip(texts, found, strict=True)]
        logits = writer.step(unread, caches)
    else:
        with torch.inference_mode():
            device = writer.embed.weight.device
            logits = [writer(torch.tensor([t.unread], device=device), t.cache)[0, -1] for t in texts]
    return [text.add(text.choose(row)) for text, row in zip(texts, logits, strict=True)]


def generate_together(
    writer: Writer, prompts: Sequence[Sequence[int]], sampling: Sampling, end: int | None = None
) -> Iterator[list[int | None]]:
    """The next token of each text, again and again; stop asking when there are enough.

    Each text is what `generate` writes by itself, the one at place i with the seed `seed + i`. One that has
    come to the token `end` gives None from then on; when all have, it is over.

    Raises:
        ValueError: a prompt is empty.
    """
    seeds = [(sampling.seed + i) % 2**64 for i in range(len(prompts))]
    texts = [Text(writer, p, replace(sampling, seed=s)) for p, s in zip(prompts, seeds, strict=True)]
    going = list(range(len(texts)))
    while going:
        found = dict(zip(going, following(writer, [texts[i] for i in going]), strict=True))
        for place in range(len(found[going[0]])):
            tokens = [found[i][place] if i in going else None for i in range(len(texts))]
            yield tokens
            going = [i for i in going if end is None or tokens[i] != end]
            if not going:
                return


def generate(writer: Writer, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """The tokens that follow upon a prompt, without end: stop asking when there are enough.

    The prompt is read in one pass, its last `context` tokens where it is longer. When the context is
    full, the later half of it is read anew and generation goes on from there.

    Raises:
        ValueError: the prompt is empty.
    """
    text = Text(writer, prompt, sampling)
    while True:
        yield from following(writer, [text])[0]
