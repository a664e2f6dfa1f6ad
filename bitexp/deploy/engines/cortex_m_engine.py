"""C code on an ARM Cortex-M4 in the emulator: what a microcontroller computes, in how much memory.

The emulator counts instructions and knows no cycles.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.engines.c_program import Header
from bitexp.deploy.engines.engine import ENGINES, Engine

HERE = Path(__file__).parent / "cortex_m"
COMPILER, EMULATOR, SIZES = "arm-none-eabi-gcc", "qemu-system-arm", "arm-none-eabi-size"
FLAGS = (
    "-std=c99", "-Os", "-Wall", "-Wextra", "-Werror", "-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16",
    "-mfloat-abi=hard", "-ffunction-sections", "-fdata-sections",
)  # fmt: skip
SHIFT, TICK = 6, 40
"""An instruction takes 2^6 ns by the emulator's clock, and a tick is 40 ns."""
PATIENCE = 3600
"""Seconds that the emulator may take."""


@ENGINES.register("cortex-m4")
class CortexM(Engine):
    """model.c in qemu's board mps2-an386.

    Attributes:
        flash: bytes of code and constants of the network, with what it takes from the C library.
        ram: bytes of its static memory, the input with it.
        stack, instructions: bytes that an inference takes there, and its instructions, after `outputs`.
    """

    target: ClassVar[str] = "c"
    asked_for: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
        if missing:
            raise UserError(
                f"this needs {' and '.join(missing)}: apt-get install --no-install-recommends "
                "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
            )
        self.folder = folder.absolute()
        self.header, self.instructions, self.stack = Header.read(folder), 0, 0
        self.flash, self.ram = self.sizes()

    def sizes(self) -> tuple[int, int]:
        """Bytes of flash and of static memory, with what it calls, less those of an empty program."""
        with tempfile.TemporaryDirectory() as scratch:
            empty, whole = Path(scratch, "empty.c"), Path(scratch, "whole.c")
            empty.write_text("int main(void) { return 0; }\n", encoding="utf-8")
            call = "model_step(0, y)" if self.header.steps else "model_predict(x)"
            data = (
                "static float y[MODEL_OUTPUTS];"
                if self.header.steps
                else "static model_input x[MODEL_INPUTS];"
            )
            text = f'#include "model.h"\n{data}\nint main(void) {{ return {call}; }}\n'
            whole.write_text(text, encoding="utf-8")
            sizes = []
            for main, sources in ((empty, []), (whole, [str(self.folder / "model.c")])):
                made = Path(scratch, "program")
                nosys = ["-specs=nano.specs", "-specs=nosys.specs"]
                compile([str(main), *sources], made, self.folder, *nosys)
                lines = subprocess.run(
                    [SIZES, str(made)], capture_output=True, encoding="utf-8", check=True
                ).stdout
                sizes.append([int(number) for number in lines.splitlines()[1].split()[:3]])
        code, data, zero = (after - before for before, after in zip(*sizes, strict=True))
        return code + data, data + zero

    def outputs(self, inputs: Tensor) -> Tensor:
        if self.header.steps:  # before each text a negative token
            numbers = torch.nn.functional.pad(inputs, (1, 0), value=-1).to(torch.int32).numpy()
        else:
            numbers = self.header.inputs(inputs).numpy()
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            (place / "input.bin").write_bytes(np.ascontiguousarray(numbers).tobytes())
            sources = [str(HERE / name) for name in ("main.c", "start.c")]
            compile(
                [*sources, str(self.folder / "model.c")],
                place / "program",
                self.folder,
                "-specs=rdimon.specs",
            )
            words = [
                EMULATOR, "-machine", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-monitor", "none",
                "-serial", "none", "-semihosting-config", "enable=on,target=native", "-icount",
                f"shift={SHIFT}", "-kernel", "program",
            ]  # fmt: skip
            ended = subprocess.run(words, cwd=place, capture_output=True, encoding="utf-8", timeout=PATIENCE)
            if ended.returncode:
                raise UserError(f"the emulator ended with {ended.returncode}: {ended.stderr.strip()[:500]}")
            ticks, self.stack = map(int, ended.stdout.split()[-2:])
            self.instructions = ticks * TICK >> SHIFT
            self.measures = {
                "flash_bytes": self.flash,
                "static_bytes": self.ram,
                "stack_bytes": self.stack,
                "instructions": self.instructions,
            }
            self.remarks = (
                f"{self.flash:,} bytes of flash, {self.ram:,} of static memory, {self.stack:,} of stack, "
                f"{self.instructions:,} instructions for an inference (by qemu, which knows no cycles)"
            )
            logits = torch.from_numpy(np.fromfile(place / "output.bin", np.float32))
        return logits.view(*inputs.shape[: 2 if self.header.steps else 1], self.header.outputs)


def compile(sources: list[str], made: Path, include: Path, *libraries: str) -> None:
    """Compiles and links. Raises `UserError` with what the compiler says."""
    linked = [*libraries, "-Wl,--gc-sections", f"-T{HERE / 'link.ld'}" if "rdimon" in libraries[0] else ""]
    words = [COMPILER, *FLAGS, f"-I{include}", *sources, *filter(None, linked), "-lm", "-o", str(made)]
    ended = subprocess.run(words, capture_output=True, encoding="utf-8")
    if ended.returncode:
        raise UserError(f"{COMPILER} refuses the C code: {ended.stderr.strip()[:500]}")
