"""What a network writes down of itself, so that another may carry it out in one call.

A model that has `record(tape)` goes through the same modules as its `forward`, in evaluation and for few
inputs, and calls a word of the tape where that computes. It knows nothing of who plays the tape.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

Value = Any
"""What a tape gives for a tensor `[rows, features]` that is there once the tape is played."""


class Tape(Protocol):
    """The words. All of them take and give values; the modules are those of the network."""

    def embed(self, table: nn.Module) -> Value:
        """The rows of an embedding for the next token of every text."""

    def inputs(self, features: int) -> Value:
        """One row: the input, flattened."""

    def image(self, channels: int, height: int, width: int) -> Value:
        """A row for each channel: the input as an image, for the words below that take images."""

    def convolve(self, layer: nn.Module, x: Value) -> Value:
        """A convolution of an image, quantized or not, with the norm that is its own."""

    def batch_norm(self, norm: nn.Module, x: Value) -> Value:
        """A batch norm of an image, in evaluation."""

    def max_pool(self, x: Value, size: int) -> Value:
        """The largest of each window of an image."""

    def mean_pixels(self, x: Value) -> Value:
        """The mean of each channel of an image, as one row."""

    def linear(self, layer: nn.Module, x: Value) -> Value:
        """A linear layer, quantized or not, with the norm that is its own."""

    def norm(self, norm: nn.Module, x: Value) -> Value:
        """A layer or RMS norm; an identity is x itself."""

    def activate(self, name: str, x: Value) -> Value:
        """relu, relu2, silu or gelu."""

    def gated(self, name: str, gate: Value, up: Value) -> Value:
        """activation(gate) * up."""

    def add(self, x: Value, y: Value | Tensor) -> Value:
        """The sum of two values, or of one with a tensor of its shape."""

    def attend(self, q: Value, k: Value, v: Value, layer: int, model: Any) -> Value:
        """Causal attention of the next token, with rotary positions; keys and values join the cache."""

    def attend_all(self, qkv: Value, heads: int) -> Value:
        """Attention between all rows; a row is `[3, heads, size]`."""

    def gather(self, x: Value, index: Tensor) -> Value:
        """The elements of a single row x at int64 places `[rows, features]`."""

    def prepend(self, row: Tensor, x: Value) -> Value:
        """One more row before x."""

    def mean(self, x: Value) -> Value:
        """The mean of all rows."""

    def first(self, x: Value) -> Value:
        """The first row."""
