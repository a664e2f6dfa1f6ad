"""A whole frozen decoder in llama.cpp, with TQ2_0 weights: out of the library that `xllamacpp` carries.

The file is written by the package `gguf`. Its architecture is `llama`: RMS norms before attention and
feed-forward layer, SiLU, no norms in the quantized layers (the preset `b158`).
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bitexp.bench import ggml
from bitexp.deploy.frozen import FrozenLayer
from bitexp.models.decoder import Decoder

BLOCK = 256
"""Codes of TQ2_0 with a scale of their own."""
LAYERS = {
    "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output",
    "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}  # fmt: skip


class Opaque(ctypes.Structure):
    """Settings of a model or a context: larger than either, since their fields change between versions."""

    _fields_ = (("content", ctypes.c_uint8 * 512),)


class Batch(ctypes.Structure):
    """`struct llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
silent = Log(lambda level, text, data: None)


@functools.cache
def library() -> Any:
    """The shared library with the functions of llama.cpp that are used here."""
    lib = ggml.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    signatures = {
        "llama_log_set": (None, [Log, pointer]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (Opaque, []),
        "llama_context_default_params": (Opaque, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, Opaque]),
        "llama_init_from_model": (pointer, [pointer, Opaque]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_batch_init": (Batch, [number, number, number]),
        "llama_decode": (number, [pointer, Batch]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    return lib


class Llama:
    """A model of a file, one thread, a context of 512 tokens."""

    def __init__(self, path: Path, vocabulary: int, threads: int = 1) -> None:
        lib = library()
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not model:
            raise ValueError("llama.cpp does not load the file")
        self.context = lib.llama_init_from_model(model, lib.llama_context_default_params())
        weakref.finalize(self, lib.llama_model_free, model)
        weakref.finalize(self, lib.llama_free, self.context)  # the last is the first to be called
        lib.llama_set_n_threads(self.context, threads, threads)
        self.vocabulary, self.position = vocabulary, 0
        self.batch = lib.llama_batch_init(1, 0, 1)
        self.batch.n_tokens, self.batch.n_seq_id[0], self.batch.seq_id[0][0] = 1, 1, 0
        self.batch.logits[0] = 1

    def clear(self) -> None:
        """Forgets the text."""
        library().llama_memory_clear(library().llama_get_memory(self.context), True)
        self.position = 0

    def step(self, token: int) -> NDArray[np.float32]:
        """Logits after one more token; they hold until the next one."""
        self.batch.token[0], self.batch.pos[0] = token, self.position
        if library().llama_decode(self.context, self.batch):
            raise RuntimeError("llama.cpp could not compute a token")
        self.position += 1
        return np.ctypeslib.as_array(library().llama_get_logits_ith(self.context, 0), (self.vocabulary,))


def write_gguf(path: Path, model: Decoder) -> None:
    """A frozen decoder as llama.cpp has it.

    Raises:
        ImportError: the package `gguf` is not installed.
        ValueError: llama.cpp cannot express the model.
    """
    import gguf

    block: Any = model.blocks[0]
    if block.ffn.activation != "silu" or not isinstance(block.attn.sub_norm, nn.Identity):
        raise ValueError("llama.cpp's architecture `llama` has SiLU and no sub-norms")
    heads, file = block.attn.heads, gguf.GGUFWriter(str(path), "llama")
    width = block.ffn.gate.spec.shape[0] if isinstance(block.ffn.gate, FrozenLayer) else 0
    file.add_context_length(model.context)
    file.add_embedding_length(model.embed.embedding_dim)
    file.add_block_count(len(model.blocks))
    file.add_feed_forward_length(width)
    file.add_head_count(heads)
    file.add_head_count_kv(model.kv_heads)
    file.add_layer_norm_rms_eps(model.norm_eps)
    file.add_rope_dimension_count(model.head_dim)
    file.add_rope_freq_base(model.rope_base)
    file.add_vocab_size(model.embed.num_embeddings)
    file.add_tokenizer_model("none")
    file.add_tensor("token_embd.weight", floats(model.embed.weight))
    file.add_tensor("output_norm.weight", gain(model.norm))
    add_layer(file, "output", model.head)
    for i, block in enumerate(model.blocks):
        file.add_tensor(f"blk.{i}.attn_norm.weight", gain(block.attn.norm))
        file.add_tensor(f"blk.{i}.ffn_norm.weight", gain(block.ffn.norm))
        for ours, theirs in LAYERS.items():
            turned = {"attn.q": heads, "attn.k": model.kv_heads}.get(ours, 0)
            add_layer(file, f"blk.{i}.{theirs}", block.get_submodule(ours), turned)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def add_layer(file: Any, name: str, layer: nn.Module, turned: int = 0) -> None:
    """A layer as TQ2_0, or in fp32 where it is not frozen; `turned` heads get llama.cpp's order of pairs."""
    import gguf

    kind = gguf.GGMLQuantizationType
    if not isinstance(layer, FrozenLayer):
        assert isinstance(layer, nn.Linear)
        file.add_tensor(f"{name}.weight", floats(layer.weight))
        return
    if layer.spec.norm != "none" or layer.spec.shape[1] % BLOCK or layer.scale.dim():
        raise ValueError(
            f"{name}: no norm, one scale and rows of a multiple of {BLOCK} are what TQ2_0 can hold"
        )
    weights = floats(layer._codes()) * float(layer.scale)
    if turned:
        halves = weights.reshape(turned, 2, -1, weights.shape[1])
        weights = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weights.shape)
    packed = gguf.quants.quantize(weights, kind.TQ2_0)
    file.add_tensor(f"{name}.weight", packed, raw_dtype=kind.TQ2_0)


def floats(tensor: Any) -> NDArray[np.float32]:
    """As an fp32 array."""
    return np.ascontiguousarray(tensor.detach().float().numpy())


def gain(norm: nn.Module) -> NDArray[np.float32]:
    """The weights of an RMS norm."""
    if not isinstance(norm, nn.RMSNorm):
        raise ValueError("llama.cpp's architecture `llama` has an RMS norm before every part and the head")
    return floats(norm.weight)


def greedy(model: Llama, token: int, count: int) -> Sequence[int]:
    """The likeliest tokens after one."""
    model.clear()
    found = [token]
    for _ in range(count):
        found.append(int(model.step(found[-1]).argmax()))
    return found[1:]
