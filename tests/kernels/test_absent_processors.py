"""The compiled CPU kernel for processors that are not here: compiled for all, run in an emulator of ARM."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitexp.kernels import KERNELS
from bitexp.kernels.cpu import layout
from bitexp.kernels.cpu.jit import missing

if missing():
    pytest.skip(str(missing()), allow_module_level=True)

from llvmlite import binding, ir

from bitexp.kernels.cpu.dots import F32, I8, I64, ISAS, supported
from bitexp.kernels.cpu.tile import emit_quantize, emit_tile
from bitexp.quant.absmax import absmax_codes
from bitexp.quant.product import Quantized
from tests.support.marks import others_slow

ROOT = Path(__file__).parents[2]
TOOLS, EMULATOR = "aarch64-linux-gnu", "qemu-aarch64"
QUANTIZE = ir.FunctionType(ir.VoidType(), [I64, I64, I64, F32, I64, I64])
TILE = ir.FunctionType(ir.VoidType(), [I64] * 11)


@pytest.mark.parametrize(
    "variables",
    [{"NUMBA_CPU_NAME": "generic"}, pytest.param({"NUMBA_CPU_FEATURES": "+avx2"}, marks=pytest.mark.slow)],
    ids=["generic", "avx2"],
)
def test_a_processor_without_the_newest_instructions(variables: dict[str, str]) -> None:
    program = """
import torch
from bitexp.kernels import KERNELS
from bitexp.kernels.cpu.dots import supported
from bitexp.quant.product import Quantized
from tests.support.marks import others_slow
from tests.support.marks import others_slow
kernel, x = KERNELS.get("cpu"), torch.randn(7, 100)
codes = (torch.arange(7000).reshape(70, 100) % 3 - 1).to(torch.int8)
y = kernel.forward(x, kernel.prepare(codes, torch.tensor(0.1)))
z = KERNELS.get("reference").forward(x, Quantized(codes, torch.tensor(0.1)))
print(supported()[0], torch.equal(y, z))
"""
    if "NUMBA_CPU_FEATURES" in variables and "avx2" not in supported():
        pytest.skip("no avx2 here")
    command = [sys.executable, "-c", program]
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    isa = "avx2" if "NUMBA_CPU_FEATURES" in variables else "generic"
    assert done.stdout.split() == [isa, "True"]


def function(module: Any, kind: Any, name: str) -> tuple[Any, Any]:
    """A new function, and what builds its body."""
    one = ir.Function(module, kind, name)
    return one, ir.IRBuilder(one.append_basic_block())


def add_kernels(module: Any, isa: str, bits: int) -> dict[str, Any]:
    """The pieces of the kernel as functions: `codes`, and a `tile` for every shape of tile."""
    one, made = ISAS[isa], {}
    made["codes"], builder = function(module, QUANTIZE, "codes")
    emit_quantize(builder, *made["codes"].args)
    builder.ret_void()
    for tokens, panels in dict.fromkeys((*one.tiles, (1, 4))):
        name = f"tile{tokens}{panels}"
        made[name], builder = function(module, TILE, name)
        emit_tile(builder, one, bits, tokens, panels, *made[name].args)
        builder.ret_void()
    return made


def module_for(triple: str) -> Any:
    """An empty module for a kind of machine."""
    module = ir.Module()
    module.triple = triple
    return module


def assembly_of(module: Any, processor: str, features: str = "") -> str:
    """The module as LLVM compiles it for a processor."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple(module.triple)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite has no such target: {error}")
    machine = target.create_target_machine(cpu=processor, features=features, opt=3)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    assembly: str = machine.emit_assembly(parsed)
    return assembly


@pytest.mark.parametrize(
    ("isa", "triple", "processor", "features", "instruction"),
    others_slow(
        [
            ("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", "+dotprod", "sdot"),
            ("neon", "arm64-apple-macosx", "apple-m1", "", "sdot"),
            ("vnni512", "x86_64-unknown-linux-gnu", "icelake-server", "", "vpdpbusd"),
            ("avxvnni", "x86_64-unknown-linux-gnu", "alderlake", "", "vpdpbusd"),
            ("avx2", "x86_64-unknown-linux-gnu", "haswell", "", "vpmaddubsw"),
            ("generic", "riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d", "mul"),
        ],
        [("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", "+dotprod", "sdot")],
    ),
)
def test_kernels_compile_for_absent_processors(
    isa: str, triple: str, processor: str, features: str, instruction: str
) -> None:
    """To the instruction they are written for, and without fused multiply-add."""
    module = module_for(triple)
    add_kernels(module, isa, 2)
    assembly = assembly_of(module, processor, features)
    assert assembly.count(instruction) >= 64
    assert not any(fused in assembly for fused in ("fmadd", "fmla", "vfma", "fmsub"))


def loops(assembly: str, instruction: str) -> list[list[str]]:
    """The innermost loops with an instruction: from a label to the jump back to it."""
    found, lines, labels = [], assembly.splitlines(), {}
    for place, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = place
        elif (jump := re.match(r"\s+j\w+\s+(\.L\w+)", line)) and jump[1] in labels:
            body = lines[labels.pop(jump[1]) : place]
            innermost = not any(line.startswith(".L") for line in body[1:])
            if innermost and any(instruction in line for line in body):
                found.append(body)
    return found


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_tile_needs_more_registers_than_there_are(bits: int) -> None:
    """What a loop keeps on the stack lies across cache lines and takes up to half its time again."""
    module = module_for("x86_64-unknown-linux-gnu")
    made = add_kernels(module, "vnni512", bits)
    found = loops(assembly_of(module, "icelake-server"), "vpdpbusd")
    assert len(found) == len(made) - 1
    for body in found:
        assert not [line for line in body if "(%rsp)" in line or "(%rbp)" in line]


START = """
    .globl _start
_start:
    mov x0, #0
    bl system_read
    bl work
    mov x0, #1
    bl system_write
    mov x0, #0
    mov x8, #94
    svc #0
system_read:
    mov x8, #63
    b system
system_write:
    mov x8, #64
system:
    adrp x1, memory
    add x1, x1, :lo12:memory
    ldr x2, ={size}
    svc #0
    ret
"""
"""An ARM program for Linux that reads its memory, works on it and writes it."""


class Program:
    """A program without any library: calls of the kernel's pieces on one memory."""

    def __init__(self, isa: str, bits: int, size: int) -> None:
        self.module, self.size = module_for("aarch64-unknown-linux-gnu"), size
        self.kernels = add_kernels(self.module, isa, bits)
        memory = ir.GlobalVariable(self.module, ir.ArrayType(I8, size), "memory")
        memory.initializer, memory.align = ir.Constant(memory.value_type, None), 64
        _, self.builder = function(self.module, ir.FunctionType(ir.VoidType(), []), "work")
        self.memory = self.builder.ptrtoint(memory, I64)

    def call(self, kernel: str, *arguments: float, places: tuple[int, ...]) -> None:
        """Calls a piece; the arguments with an index in `places` are offsets in the memory."""
        one = self.kernels[kernel]
        values = [ir.Constant(arg.type, n) for arg, n in zip(one.args, arguments, strict=True)]
        for i in places:
            values[i] = self.builder.add(self.memory, values[i])
        self.builder.call(one, values)

    def run(self, folder: Path, memory: Any) -> Any:
        """The memory after the program, of the memory before it."""
        self.builder.ret_void()
        assembly = assembly_of(self.module, "neoverse-n1", "+dotprod")
        (folder / "program.s").write_text(assembly + "\n    .text" + START.format(size=self.size))
        assembler = [f"{TOOLS}-as", "-march=armv8.2-a+dotprod", "program.s", "-o", "program.o"]
        for command in (assembler, [f"{TOOLS}-ld", "program.o", "-o", "program"]):
            subprocess.run(command, cwd=folder, check=True)
        (folder / "before").write_bytes(memory.tobytes())
        with (folder / "before").open("rb") as before, (folder / "after").open("wb") as after:
            command = [EMULATOR, "-cpu", "max", "./program"]
            subprocess.run(command, cwd=folder, stdin=before, stdout=after, check=True)
        return np.fromfile(folder / "after", np.uint8)


@pytest.mark.skipif(
    not (shutil.which(f"{TOOLS}-as") and shutil.which(EMULATOR)),
    reason="needs the packages qemu-user and binutils-aarch64-linux-gnu",
)
@pytest.mark.parametrize("isa", ["neon", "generic"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_on_an_emulated_arm_the_kernel_gives_the_reference_s_bits(
    isa: str, bits: int, tmp_path: Path
) -> None:
    """Every shape of tile on five tokens of 200 inputs, one saturating, one zero, and 64 outputs."""
    draw = torch.Generator().manual_seed(bits)
    low = layout.LOW[bits]
    codes = torch.randint(low, low + 2**bits, (64, 200), dtype=torch.int8, generator=draw)
    if bits == 1:
        codes = 2 * codes + 1
    codes[5] = codes.max()
    x, steps = torch.randn(5, 200, generator=draw), torch.rand(64, generator=draw)
    x[1], x[2] = x[1].sign(), 0
    found = layout.digits_of(codes)
    assert found is not None
    assert found[0] == bits
    packed = layout.pack(found[1], bits)
    blocks = packed.shape[1]
    wide = blocks * 4 * (8 // bits)
    line = max(wide, -(-200 // 16) * 16)
    parts = {"x": x, "w": packed, "scale": steps, "bias": torch.randn(64, generator=draw)}
    parts |= {"q": torch.zeros(5, line, dtype=torch.int8), "sums": torch.zeros(5, dtype=torch.int32)}
    parts |= {"steps": torch.zeros(5), "nothing": torch.full((64,), -0.0)}
    tiles = dict.fromkeys((*ISAS[isa].tiles, (1, 4)))
    parts |= {f"y{tokens}{panels}": torch.full((5, 64), torch.nan) for tokens, panels in tiles}
    at, size = {}, 0
    for name, part in parts.items():
        at[name], size = size, size + -(-part.nbytes // 64) * 64
    memory = np.zeros(size, np.uint8)
    for name, part in parts.items():
        memory[at[name] :][: part.nbytes] = np.frombuffer(part.contiguous().numpy().tobytes(), np.uint8)
    program = Program(isa, bits, size)
    for r in range(5):
        token = at["x"] + 800 * r, 200, at["q"] + line * r, 127.0, at["sums"] + 4 * r, at["steps"] + 4 * r
        program.call("codes", *token, places=(0, 2, 4, 5))
    for tokens, panels in tiles:
        for r in range(0, 5 - 5 % tokens, tokens):
            for p in range(0, 4, panels):
                outputs = 64 * p
                program.call(
                    f"tile{tokens}{panels}", at["w"] + outputs, blocks, at["q"] + line * r, line,
                    at["sums"] + 4 * r, at["steps"] + 4 * r, at["scale"] + outputs, at["nothing"] + outputs,
                    at["bias"] + outputs, at[f"y{tokens}{panels}"] + 256 * r + outputs, 256,
                    places=(0, 2, 4, 5, 6, 7, 8, 9),
                )  # fmt: skip
    after = program.run(tmp_path, memory)

    def read(name: str) -> Tensor:
        part = parts[name]
        return torch.frombuffer(after[at[name] :][: part.nbytes].copy(), dtype=part.dtype).view(part.shape)

    q, step = absmax_codes(x, 127, (-1,))
    assert torch.equal(read("q")[:, :200].float(), q.float())
    assert torch.equal(read("steps"), step.flatten())
    expected = KERNELS.get("reference").forward(x, Quantized(codes, steps), parts["bias"])
    for tokens, panels in tiles:
        y, whole = read(f"y{tokens}{panels}"), 5 - 5 % tokens
        assert torch.equal(y[:whole], expected[:whole])
        assert y[whole:].isnan().all()
