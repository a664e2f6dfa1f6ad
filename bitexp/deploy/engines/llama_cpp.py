"""A GGUF file in llama.cpp, out of the library that the wheel `xllamacpp` carries: its C interface by "
"ctypes."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.engines.engine import ENGINES, Engine, Text

CONTEXT_LENGTH, BATCH, MICRO_BATCH = 0, 1, 2
"""Places of int32 fields among the settings of a context."""
FLASH, KEYS, VALUES = 13, 26, 27
FLASH_AUTO, F16, F32 = -1, 1, 0


class Opaque(ctypes.Structure):
    """Settings of a model or a context: larger than either, since their fields change between versions."""

    _fields_ = (("content", ctypes.c_int32 * 128),)


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
    """The shared library with the functions that are used here. Raises `UserError` where there is none."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise UserError('llama.cpp comes with the package xllamacpp: pip install "bitexp[gguf]"')
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    lib = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    numbers = ctypes.POINTER(number)
    signatures = {
        "llama_log_set": (None, [Log, pointer]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (Opaque, []),
        "llama_context_default_params": (Opaque, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, Opaque]),
        "llama_init_from_model": (pointer, [pointer, Opaque]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_tokenize": (
            number, [pointer, ctypes.c_char_p, number, numbers, number, ctypes.c_bool, ctypes.c_bool]
        ),
        "llama_detokenize": (
            number, [pointer, numbers, number, ctypes.c_char_p, number, ctypes.c_bool, ctypes.c_bool]
        ),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_batch_init": (Batch, [number, number, number]),
        "llama_batch_free": (None, [Batch]),
        "llama_decode": (number, [pointer, Batch]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
    }  # fmt: skip
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    return lib


class Llama:
    """A model of a file.

    Args:
        context: tokens that it can hold. exact: keys and values in fp32 and attention written out, as here;
            else as llama.cpp has it by default.

    Raises:
        UserError: llama.cpp does not load the file.
    """

    def __init__(self, path: Path, context: int = 512, threads: int = 1, exact: bool = False) -> None:
        lib = library()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise UserError(f"llama.cpp does not load {path}")
        settings = lib.llama_context_default_params()
        for place in (CONTEXT_LENGTH, BATCH, MICRO_BATCH):
            settings.content[place] = context
        if exact:
            found = [settings.content[place] for place in (FLASH, KEYS, VALUES)]
            if found != [FLASH_AUTO, F16, F16]:
                raise UserError("this version of llama.cpp has other settings than xllamacpp 2026.10")
            for place in (FLASH, KEYS, VALUES):
                settings.content[place] = F32
        self.context = lib.llama_init_from_model(self.model, settings)
        weakref.finalize(self, lib.llama_model_free, self.model)
        weakref.finalize(self, lib.llama_free, self.context)  # the last is the first to be called
        lib.llama_set_n_threads(self.context, threads, threads)
        self.words = lib.llama_model_get_vocab(self.model)
        self.vocabulary, self.position = int(lib.llama_vocab_n_tokens(self.words)), 0
        self.room, self.batch = 0, Batch()

    def clear(self) -> None:
        """Forgets the text."""
        library().llama_memory_clear(library().llama_get_memory(self.context), True)
        self.position = 0

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits `[tokens, vocabulary]` after each of some more tokens."""
        self.decode(tokens)
        return np.stack([self.logits(place) for place in range(len(tokens))])

    def step(self, token: int) -> NDArray[np.float32]:
        """Logits after one more token; they hold until the next one."""
        self.decode([token])
        return self.logits(0)

    def logits(self, place: int) -> NDArray[np.float32]:
        """Those after a token of the last ones, in the library's memory."""
        row = library().llama_get_logits_ith(self.context, place)
        found: NDArray[np.float32] = np.ctypeslib.as_array(row, (self.vocabulary,))
        return found

    def decode(self, tokens: Sequence[int], all: bool = True) -> None:
        """Computes some more tokens, and the logits after all of them or after the last."""
        lib, count = library(), len(tokens)
        if count > self.room:
            self.room, self.batch = count, lib.llama_batch_init(count, 0, 1)
        batch = self.batch
        batch.n_tokens = count
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, self.position + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = all or place == count - 1
        if lib.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not compute a token")
        self.position += count

    def tokenize(self, text: str) -> list[int]:
        """Its ids of a text, in which words of special tokens are text."""
        given = text.encode()
        ids = (ctypes.c_int32 * (len(given) + 16))()
        count = library().llama_tokenize(self.words, given, len(given), ids, len(ids), False, False)
        return list(ids[:count])

    def text(self, tokens: Sequence[int]) -> bytes:
        """The text of ids."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        room = ctypes.create_string_buffer(16 * len(tokens) + 64)
        count = library().llama_detokenize(self.words, ids, len(tokens), room, len(room), False, False)
        return room.raw[:count]


@ENGINES.register("llama.cpp")
class LlamaCpp(Engine):
    """model.gguf, with keys and values in fp32; a text that is written as llama.cpp has it by default."""

    target: ClassVar[str] = "gguf"
    context: ClassVar[int] = 4096

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.gguf"
        self.model = Llama(self.path, context=self.context, exact=True)

    def outputs(self, inputs: Tensor) -> Tensor:
        rows = []
        for text in inputs.tolist():
            self.model.clear()
            rows.append(torch.from_numpy(self.model.read(text)))
        return torch.stack(rows)

    def text(self) -> Text:
        return LlamaText(self.writer)

    @functools.cached_property
    def writer(self) -> Llama:
        """For texts that are written."""
        return Llama(self.path, context=self.context, threads=torch.get_num_threads())


class LlamaText:
    """See `Text`."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        model.clear()

    def read(self, tokens: Sequence[int]) -> Tensor:
        self.model.decode(tokens, all=False)
        return torch.from_numpy(self.model.logits(len(tokens) - 1))
