"""Decoder-only language model of the LLaMA family, with BitNet's sub-norms as an option.

RMSNorm, rotary positions, grouped-query attention and a gated feed-forward layer. With the same weights it
computes what transformers' `LlamaForCausalLM` and `MistralForCausalLM` (within their window) compute, with
`sub_norm` and `activation: relu2` what `BitNetForCausalLM` (arXiv 2504.12285) computes, with `qkv_bias` or
`qk_norm` what `Qwen2ForCausalLM` or `Qwen3ForCausalLM` compute.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.common import checks
from bitexp.models.attention import attention
from bitexp.models.registry import MODELS
from bitexp.models.tape import Tape, Value
from bitexp.models.taps import Tap, Taps
from bitexp.models.ties import Ties

Activation = Literal["silu", "relu2"]


ROOM = 256
"""Tokens that a cache has memory for at first."""


class Cache:
    """Keys and values of the tokens so far: `[layers, 2, B, kv_heads, room, head_dim]`.

    A model that is called with a cache takes its tokens as the ones that follow, and adds them to it. The
    room is doubled when it is full, up to the context.
    """

    def __init__(self, model: Decoder, batch: int = 1) -> None:
        weight, self.most = model.embed.weight, model.context
        shape = (len(model.blocks), 2, batch, model.kv_heads, min(ROOM, self.most), model.head_dim)
        self.length, self.room = 0, shape[4]
        self.store = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.address = self.store.data_ptr()

    def grow(self, tokens: int) -> None:
        """Makes room for so many tokens, at most the context."""
        if tokens <= self.room:
            return
        self.room = min(self.most, max(tokens, 2 * self.room))
        *shape, _, head_dim = self.store.shape
        with torch.inference_mode(False):  # it outlives the mode in which it is made
            store = self.store.new_empty(*shape, self.room, head_dim)
        store[..., : self.length, :] = self.store[..., : self.length, :]
        self.store, self.address = store, store.data_ptr()

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values `[B, kv_heads, T, head_dim]` of one layer; returns all of them so far."""
        end = self.length + keys.shape[2]
        self.grow(end)
        for part, new in enumerate((keys, values)):
            self.store[layer, part, :, :, self.length : end] = new
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]


class Attention(nn.Module):
    """norm -> causal attention with rotary positions -> (sub-norm) -> output, `[B, T, D] -> [B, T, D]`."""

    prenorm: ClassVar[dict[str, str]] = {"q": "norm", "k": "norm", "v": "norm", "o": "sub_norm"}
    ties: ClassVar[Ties] = (("q", "k", "v"),)

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        eps: float,
        sub_norm: bool,
        dropout: float,
        *,
        head_dim: int,
        qkv_bias: bool,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        width = heads * head_dim
        self.norm = nn.RMSNorm(dim, eps)
        self.q = nn.Linear(dim, width, bias=qkv_bias)
        self.k = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias)
        self.v = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias)
        self.q_norm = nn.RMSNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.sub_norm = nn.RMSNorm(width, eps) if sub_norm else nn.Identity()
        self.o = nn.Linear(width, dim, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: Rotation, cache: Cache | None, layer: int) -> Tensor:
        x = self.norm(x)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, T, head_dim]
            for part in (self.q(x), self.k(x), self.v(x))
        )
        q, k = rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.extend(layer, k, v)
        mixed = attend(q, k, v, past)
        return self.drop(self.o(self.sub_norm(mixed.transpose(1, 2).flatten(2))))

    def record(self, tape: Tape, x: Value, model: Decoder, layer: int) -> Value:
        """See `Decoder.record`."""
        x = tape.norm(self.norm, x)
        q, k, v = (tape.linear(part, x) for part in (self.q, self.k, self.v))
        mixed = tape.attend(q, k, v, layer, model)
        return tape.linear(self.o, tape.norm(self.sub_norm, mixed))


class FeedForward(nn.Module):
    """norm -> down((act(gate) * up)), with a sub-norm before `down`; `[B, T, D] -> [B, T, D]`."""

    prenorm: ClassVar[dict[str, str]] = {"gate": "norm", "up": "norm", "down": "sub_norm"}
    ties: ClassVar[Ties] = (("gate", "up"),)

    def __init__(
        self, dim: int, hidden: int, activation: Activation, eps: float, sub_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.activation = activation
        self.norm = nn.RMSNorm(dim, eps)
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.sub_norm = nn.RMSNorm(hidden, eps) if sub_norm else nn.Identity()
        self.down = nn.Linear(hidden, dim, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        gate = self.gate(x)
        gate = F.silu(gate) if self.activation == "silu" else F.relu(gate).square()
        return self.drop(self.down(self.sub_norm(gate * self.up(x))))

    def record(self, tape: Tape, x: Value) -> Value:
        """See `Decoder.record`."""
        x = tape.norm(self.norm, x)
        gated = tape.gated(self.activation, tape.linear(self.gate, x), tape.linear(self.up, x))
        return tape.linear(self.down, tape.norm(self.sub_norm, gated))


class Block(nn.Module):
    """One transformer layer: attention and feed-forward, each added to the residual stream `[B, T, D]`."""

    def __init__(self, attn: Attention, ffn: FeedForward) -> None:
        super().__init__()
        self.attn, self.ffn = attn, ffn

    def forward(self, x: Tensor, turn: Rotation, cache: Cache | None, layer: int) -> Tensor:
        x = x + self.attn(x, turn, cache, layer)
        return x + self.ffn(x)

    def record(self, tape: Tape, x: Value, model: Decoder, layer: int) -> Value:
        """See `Decoder.record`."""
        x = tape.add(x, self.attn.record(tape, x, model, layer))
        return tape.add(x, self.ffn.record(tape, x))


@MODELS.register("decoder")
class Decoder(nn.Module):
    """Token ids `[B, T]`, T up to `context` -> logits of the next token `[B, T, vocabulary]`.

    Raises `ValueError`, before anything is allocated, for sizes that do not fit each other.

    Args:
        vocabulary, context: of the data.
        mlp_ratio: width of the gated feed-forward layer over dim.
        kv_heads: heads of keys and values; each serves heads / kv_heads heads of queries.
        activation: of the gate: silu (SwiGLU) or relu2 (squared ReLU).
        sub_norm: RMSNorm before the output projections `o` and `down`, as in BitNet.
        tied: the head's weights are those of the embedding.
        rope_base: of the rotary frequencies.
        init_std: of the normal distribution that weights are drawn from; None: Xavier's uniform one, and
            0.02 for the embedding.
        head_dim: size of a head of queries, keys and values; None: dim / heads.
        qkv_bias: whether queries, keys and values have biases, as in Qwen2.
        qk_norm: RMSNorm of every head of queries and keys before they are turned, as in Qwen3.
    """

    prenorm: ClassVar[dict[str, str]] = {"head": "norm"}
    taps: ClassVar[Taps] = {
        "hidden": Tap("blocks.*"),
        "query": Tap("blocks.*.attn.q"),
        "key": Tap("blocks.*.attn.k"),
        "value": Tap("blocks.*.attn.v"),
    }

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        dim: int,
        depth: int,
        heads: int,
        kv_heads: int,
        mlp_ratio: float,
        activation: Activation,
        sub_norm: bool,
        tied: bool,
        rope_base: float,
        norm_eps: float,
        init_std: float | None,
        dropout: float,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        checks.check_sizes(vocabulary=vocabulary, context=context, dim=dim, depth=depth)
        checks.check_sizes(heads=heads, kv_heads=kv_heads)
        checks.check_choice("activation", activation, ("silu", "relu2"))
        checks.check_dropout(dropout)
        if head_dim is None:
            checks.check_divides("heads", heads, dim, f"dim={dim}")
            head_dim = dim // heads
        checks.check_sizes(head_dim=head_dim)
        checks.check_divides("kv_heads", kv_heads, heads, f"heads={heads}")
        checks.check_positive(rope_base=rope_base, norm_eps=norm_eps)
        if init_std is not None:
            checks.check_positive(init_std=init_std)
        hidden = checks.hidden_width(dim, mlp_ratio)
        if head_dim % 2:
            raise ValueError(f"heads={heads} gives heads of {head_dim}: rotary positions need an even size")
        super().__init__()
        self.context, self.rope_base, self.norm_eps = context, rope_base, norm_eps
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv_bias, self.qk_norm = qkv_bias, qk_norm
        if qk_norm:
            vars(self)["record"] = None  # a tape has no norm of heads
        self.embed = nn.Embedding(vocabulary, dim)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                Attention(
                    dim,
                    heads,
                    kv_heads,
                    norm_eps,
                    sub_norm,
                    dropout,
                    head_dim=head_dim,
                    qkv_bias=qkv_bias,
                    qk_norm=qk_norm,
                ),
                FeedForward(dim, hidden, activation, norm_eps, sub_norm, dropout),
            )
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, norm_eps)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.initialize(init_std)
        if tied:
            self.head.weight = self.embed.weight

    def initialize(self, std: float | None) -> None:
        """Draws the weights; see `init_std`."""
        nn.init.normal_(self.embed.weight, std=std or 0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if std is None:
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if end > self.context:
            raise ValueError(f"{end} tokens are more than the context of {self.context}")
        x = self.drop(self.embed(tokens))
        turn = rotation(start, end, self.head_dim, self.rope_base, x)
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, cache, layer)
        if cache is not None:
            cache.length = end
        return self.head(self.norm(x))

    def record(self, tape: Tape) -> Value:
        """Logits `[texts, vocabulary]` of the token after the next one of every text, in evaluation."""
        x = tape.embed(self.embed)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = block.record(tape, x, self, layer)
        return tape.linear(self.head, tape.norm(self.norm, x))

    def cache(self) -> Cache:
        """An empty one, for a single text."""
        return Cache(self)


Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every angle, `[T, head_dim]`."""


def rotation(start: int, end: int, head_dim: int, base: float, like: Tensor) -> Rotation:
    """The angles of the positions start..end-1 (RoPE, arXiv 2104.09864), computed in fp32."""
    powers = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim
    positions = torch.arange(start, end, device=like.device, dtype=torch.float32)
    angles = (positions[:, None] * (1.0 / base**powers)).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turns `[..., T, head_dim]` by its positions; pairs are (i, i + head_dim / 2), as in LLaMA's port."""
    cos, sin = turn
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """Causal attention of T queries that follow upon `past` tokens over past + T keys and values."""
    grouped = q.shape[1] != k.shape[1]
    if past == 0:
        return attention(q, k, v, causal=True, grouped=grouped)
    mask = None
    if q.shape[2] > 1:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(past)
    return attention(q, k, v, mask, grouped=grouped)
