"""C code, compiled by this machine's compiler and called from here."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.engines.engine import ENGINES, Engine, Text

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


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
        header = (folder / "model.h").read_text(encoding="utf-8")
        found = {name: int(count) for name, count in re.findall(r"#define MODEL_(\w+) (\d+)", header)}
        self.outputs_count, self.steps = found["OUTPUTS"], "CONTEXT" in found

    def outputs(self, inputs: Tensor) -> Tensor:
        if self.steps:
            return torch.stack([self.every(tokens) for tokens in inputs.tolist()])
        images = inputs.flatten(1).float().contiguous()
        logits = torch.empty(len(images), self.outputs_count)
        for image, row in zip(images, logits, strict=True):
            self.library.model_run(ctypes.c_void_p(image.data_ptr()), ctypes.c_void_p(row.data_ptr()))
        return logits

    def every(self, tokens: list[int]) -> Tensor:
        """Logits after each token of a text."""
        self.library.model_reset()
        logits = torch.empty(len(tokens), self.outputs_count)
        for token, row in zip(tokens, logits, strict=True):
            self.step(token, row)
        return logits

    def step(self, token: int, logits: Tensor) -> None:
        """One more token of the text."""
        if self.library.model_step(token, ctypes.c_void_p(logits.data_ptr())):
            raise UserError(f"the C code does not take the token {token}")

    def text(self) -> Text | None:
        if not self.steps:
            return None
        self.library.model_reset()
        return CText(self)


class CText:
    """See `Text`."""

    def __init__(self, engine: CProgram) -> None:
        self.engine, self.logits = engine, torch.empty(engine.outputs_count)

    def read(self, tokens: Sequence[int]) -> Tensor:
        for token in tokens:
            self.engine.step(token, self.logits)
        return self.logits
