"""C code, compiled by this machine's compiler and called from here."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.engines.engine import ENGINES, Engine, Text
from bitexp.deploy.exporters.c_pixels import Pixels

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


@dataclass(frozen=True)
class Header:
    """What model.h says."""

    outputs: int
    steps: bool
    """Whether it reads tokens, one after the other."""
    pixels: Pixels | None
    """The images that it takes, where it takes bytes."""

    @classmethod
    def read(cls, folder: Path) -> Header:
        """That of a folder."""
        text = (folder / "model.h").read_text(encoding="utf-8")
        outputs = re.findall(r"#define MODEL_OUTPUTS (\d+)", text)
        pixels = Pixels.read(text) if "typedef uint8_t model_input;" in text else None
        return cls(int(outputs[0]), "MODEL_CONTEXT" in text, pixels)

    def inputs(self, images: Tensor) -> Tensor:
        """Images as they are given to the code: uint8 or fp32 `[B, inputs]`.

        Raises:
            UserError: it takes bytes, and these images come of none.
        """
        inputs = images.float() if self.pixels is None else self.pixels.restored(images)
        return inputs.flatten(1).contiguous()


@ENGINES.register("c")
class CProgram(Engine):
    """model.c, by the first of cc, gcc and clang."""

    target: ClassVar[str] = "c"

    def __init__(self, folder: Path) -> None:
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            raise UserError("this needs a C compiler: cc, gcc or clang")
        made = folder / "model.so"
        words = [compiler, *FLAGS, str(folder / "model.c"), "-lm", "-o", str(made)]
        ended = subprocess.run(words, capture_output=True, encoding="utf-8")
        if ended.returncode:
            raise UserError(f"the C compiler refuses {folder / 'model.c'}: {ended.stderr.strip()[:500]}")
        self.library = ctypes.CDLL(str(made.absolute()))
        made.unlink()  # it stays loaded
        self.header = Header.read(folder)

    def outputs(self, inputs: Tensor) -> Tensor:
        if self.header.steps:
            return torch.stack([self.every(tokens) for tokens in inputs.tolist()])
        images = self.header.inputs(inputs)
        logits = torch.empty(len(images), self.header.outputs)
        for image, row in zip(images, logits, strict=True):
            self.library.model_run(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(row.data_ptr()))
        return logits

    def every(self, tokens: list[int]) -> Tensor:
        """Logits after each token of a text."""
        self.library.model_reset()
        logits = torch.empty(len(tokens), self.header.outputs)
        for token, row in zip(tokens, logits, strict=True):
            self.step(token, row)
        return logits

    def step(self, token: int, logits: Tensor) -> None:
        """One more token of the text."""
        if self.library.model_step(token, ctypes.c_void_p(logits.data_ptr())):
            raise UserError(f"the C code does not take the token {token}")

    def text(self) -> Text | None:
        if not self.header.steps:
            return None
        self.library.model_reset()
        return CText(self)


class CText:
    """See `Text`."""

    def __init__(self, engine: CProgram) -> None:
        self.engine, self.logits = engine, torch.empty(engine.header.outputs)

    def read(self, tokens: Sequence[int]) -> Tensor:
        for token in tokens:
            self.engine.step(token, self.logits)
        return self.logits
