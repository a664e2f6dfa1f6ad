"""A frozen network as one compiled call on the CPU: a token of a text, or an image.

Layer by layer, most of a token's time goes into Python and small calls of torch between the layers. Here all
of it runs in machine code. Quantized layers, their norms included, give the same bits for the same inputs;
attention, activations and norms with weights differ from torch's in their last bits, so that a code may flip
now and then.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bitexp.deploy.tape import CannotCompileError, Recorder
from bitexp.kernels.cpu.jit import missing
from bitexp.models.decoder import Cache, Decoder

AHEAD = 16
"""Tokens of a text at most that are computed in one call."""


class Compiled:
    """A network that has recorded itself, for `texts` rows at once. It keeps the weights that it was made of.

    Attributes:
        bytes: of the weights that a call reads.
        output: fp32 `[texts, features]`, written again by every call.

    Raises:
        CannotCompileError: numba is missing, or the network has a layer that the program has no step for.
    """

    def __init__(self, model: nn.Module, texts: int = 1) -> None:
        if reason := missing():
            raise CannotCompileError(reason)
        record = getattr(model, "record", None)
        if record is None:
            raise CannotCompileError(f"{type(model).__name__} does not record itself")
        from bitexp.kernels.cpu.program import program

        recorder = Recorder({id(m): name for name, m in model.named_modules()}, texts)
        result = record(recorder)
        self.steps = recorder.finish(result)
        self.source, self.texts, self.keep = recorder.source, texts, recorder.keep
        self.bytes = recorder.bytes
        self.output = floats(recorder.keep[-1], result.address, (texts, result.features))
        self.scratch = torch.empty(max(64, recorder.scratch), dtype=torch.uint8)
        self.rows = np.zeros((4, texts), np.int64)  # of each text: token, position, cache, room in it
        self.chosen = np.zeros((AHEAD, texts), np.int64)
        self.lock = threading.Lock()
        given = self.steps.ctypes.data, len(self.steps), self.rows.ctypes.data, texts
        self.play = functools.partial(
            program(), *given, self.scratch.data_ptr(), result.address, result.features
        )


def floats(memory: Tensor, address: int, shape: tuple[int, int]) -> Tensor:
    """The fp32 numbers at an address within memory."""
    start = address - memory.data_ptr()
    return memory[start : start + 4 * shape[0] * shape[1]].view(torch.float32).view(shape)


class CompiledDecoder:
    """A decoder for `bitexp.models.generation`: prompts are read by the model, further tokens compiled."""

    def __init__(self, model: Decoder, texts: int = 1) -> None:
        if model.training:
            raise CannotCompileError("the model is in training mode: call model.eval() first")
        self.model, self.compiled = model, Compiled(model, texts)
        self.context, self.embed, self.cache = model.context, model.embed, model.cache

    def __call__(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits `[B, T, vocabulary]` as the model's."""
        if cache is not None and tuple(tokens.shape) == (1, 1):
            return self.step([int(tokens)], [cache])[None].clone()
        return self.model(tokens, cache)

    def step(self, tokens: Sequence[int], caches: Sequence[Cache]) -> Tensor:
        """Logits `[texts, vocabulary]` after one more token of each text, which joins its cache.

        They hold until the next step.

        Raises:
            ValueError: a token is not of the vocabulary, or a context is full.
        """
        many = self.compiled.texts
        if len(tokens) > many:
            parts = (slice(start, start + many) for start in range(0, len(tokens), many))
            return torch.cat([self.step(tokens[part], caches[part]).clone() for part in parts])
        self.play(tokens, caches, 1, 0)
        return self.compiled.output[: len(tokens)]

    def likeliest(self, tokens: Sequence[int], caches: Sequence[Cache], count: int) -> list[list[int]]:
        """For each text the likeliest `count` tokens, one after the other, after one more token.

        All of them but the last join the cache.

        Raises:
            ValueError: a token is not of the vocabulary, or a context is too short.
        """
        many, found = self.compiled.texts, []
        for start in range(0, len(tokens), many):
            part, rows = slice(start, start + many), min(many, len(tokens) - start)
            made: list[list[int]] = [[] for _ in range(rows)]
            given, chosen = tokens[part], self.compiled.chosen
            for done in range(0, count, AHEAD):
                turns = min(AHEAD, count - done)
                self.play(given, caches[part], turns, chosen.ctypes.data)
                for text, new in zip(made, chosen[:turns, :rows].T.tolist(), strict=True):
                    text += new
                given = [text[-1] for text in made]
            found += made
        return found

    def play(self, tokens: Sequence[int], caches: Sequence[Cache], turns: int, chosen: int) -> None:
        """Carries out the steps for texts that fit into one call; see `bitexp.kernels.cpu.program`."""
        rows, vocabulary = self.compiled.rows, self.embed.num_embeddings
        with self.compiled.lock:
            for i, (token, cache) in enumerate(zip(tokens, caches, strict=True)):
                if not 0 <= token < vocabulary:
                    raise ValueError(f"the token {token} is not one of the {vocabulary} of the vocabulary")
                end = cache.length + turns
                if end > self.context:
                    raise ValueError(f"{end} tokens are more than the context of {self.context}")
                cache.grow(end)
                rows[:, i] = token, cache.length, cache.address, cache.room
            self.compiled.play(chosen, len(tokens), turns)
        for cache in caches:
            cache.length += turns


class CompiledClassifier:
    """A network of images, one at a time: `[1, C, H, W] -> [1, classes]`; more go through the model."""

    def __init__(self, model: nn.Module) -> None:
        if model.training:
            raise CannotCompileError("the model is in training mode: call model.eval() first")
        self.model, self.compiled = model, Compiled(model)
        source = self.compiled.source
        assert source is not None
        self.input = floats(self.compiled.keep[-1], source.address, (1, source.features))

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) != 1:
            return self.model(images)
        with self.compiled.lock:
            self.input.copy_(images.reshape(1, -1))
            self.compiled.play(0, 1, 1)
            return self.compiled.output.clone()
