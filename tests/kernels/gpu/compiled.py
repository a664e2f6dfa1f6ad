"""Compiles what a launch would start, for a GPU that is not here, and counts what came out."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"

TARGETS = {
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED = {"sm_75": 64, "sm_80": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
"""KiB of shared memory that a program may use."""

DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Code:
    """What a kernel became: registers and bytes of stack per thread, instructions, their kinds."""

    kernel: str
    registers: int
    stack: int
    shared: int
    instructions: int
    loop: int
    kinds: Counter[str]
    text: str


class Recorded(Exception):
    """Stops a wrapper at its launch."""


def source(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    """The source as Triton specializes it for these arguments, and the options of the launch."""
    names = kernel.arg_names
    given = {**dict(zip(names, args, strict=False)), **{k: v for k, v in kwargs.items() if k in names}}
    options = {k: v for k, v in kwargs.items() if k not in names}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{DTYPES[value.dtype]}"
        elif parameter.is_constexpr or value is None or value == 1:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16:
                continue
        attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), options


def compiled(target: str, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> list[Code]:
    """Every kernel that `call` starts, compiled for the target instead."""
    import bitexp.kernels.gpu as package
    from bitexp.kernels.gpu import gemm, gemv, int8, launch, quantize, scale

    assert package
    cubins: list[tuple[Any, Any]] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        ast, options = source(kernel, args, kwargs)
        cubins.append((kernel, triton.compile(ast, target=TARGETS[target], options=options)))

    with monkeypatch.context() as patch:
        patch.setattr(triton.JITFunction, "run", run)
        for module in (gemm, gemv, int8, launch, quantize, scale):
            patch.setattr(module, "use_asm", lambda x: target != "gfx942", raising=False)
            patch.setattr(module, "shared_memory", lambda device: SHARED[target] * 1024, raising=False)
        call()
    return [counted(kernel.__name__, binary, target) for kernel, binary in cubins]


def counted(name: str, binary: Any, target: str) -> Code:
    """The numbers: from cuobjdump, on AMD from the assembly."""
    if target == "gfx942":
        text = binary.asm["amdgcn"]
        number = {k: int(re.search(rf"\.{k}: +(\d+)", text)[1]) for k in ("vgpr_count", "vgpr_spill_count")}
        lines = re.findall(r"^\t([vs]_\w+|buffer_\w+|global_\w+|ds_\w+)", text, re.M)
        kinds = Counter(line.split("_e")[0] for line in lines)
        return Code(
            name, number["vgpr_count"], number["vgpr_spill_count"] * 4, binary.metadata.shared, len(lines), 0,
            kinds, text,
        )  # fmt: skip
    cubin = Path(binary.metadata_group[next(k for k in binary.metadata_group if k.endswith(".cubin"))])
    usage = cuobjdump("-res-usage", cubin)
    number = {k: int(re.search(rf"{k}:(\d+)", usage)[1]) for k in ("REG", "STACK", "LOCAL")}
    text = cuobjdump("-sass", cubin)
    lines = [(int(a, 16), i) for a, i in re.findall(r"/\*([0-9a-f]{4,5})\*/ +([^;]*);", text)]
    ops = [(at, re.sub(r"^@!?U?P\d+ +", "", line)) for at, line in lines]
    ops = [(at, line) for at, line in ops if not line.startswith("NOP")]
    kinds = Counter(line.split()[0].split(".")[0] for _, line in ops)
    return Code(
        name, number["REG"], number["STACK"] + number["LOCAL"], binary.metadata.shared, len(ops),
        longest_loop(ops), kinds, binary.asm["ptx"],
    )  # fmt: skip


def longest_loop(ops: list[tuple[int, str]]) -> int:
    """Instructions in the longest span that a backward branch closes."""
    spans = [0]
    for at, line in ops:
        found = re.search(r"BRA.*?(0x[0-9a-f]+)", line)
        if found and int(found[1], 16) < at:
            spans.append(sum(int(found[1], 16) <= a <= at for a, _ in ops))
    return max(spans)


def cuobjdump(option: str, cubin: Path) -> str:
    """What the wheel's cuobjdump says."""
    return subprocess.run(
        [BIN / "cuobjdump", option, cubin], capture_output=True, text=True, check=True
    ).stdout
