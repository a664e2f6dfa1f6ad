"""What leaves the house: frozen layers, packed files, their size and cost.

from bitexp.deploy import load_packed
model, preprocessing = load_packed("packed.safetensors")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitexp.common.lazy import lazy

if TYPE_CHECKING:
    from bitexp.deploy.compiled import CompiledClassifier, CompiledDecoder
    from bitexp.deploy.cost import costs
    from bitexp.deploy.cuda_graph import Replay
    from bitexp.deploy.description import Description
    from bitexp.deploy.frozen import FrozenLayer, freeze
    from bitexp.deploy.fused_norm import fuse_norms
    from bitexp.deploy.load import find_run, load_run
    from bitexp.deploy.packed_file import load_packed, read_packed, save_packed, sizes
    from bitexp.deploy.packing import LAYOUTS
    from bitexp.deploy.sources import find_source
    from bitexp.deploy.tape import CannotCompileError

__all__ = [
    "LAYOUTS", "CannotCompileError", "CompiledClassifier", "CompiledDecoder", "Description", "FrozenLayer",
    "Replay", "costs", "find_run", "find_source", "freeze", "fuse_norms", "load_packed", "load_run",
    "read_packed", "save_packed", "sizes",
]  # fmt: skip

__getattr__ = lazy(
    __name__,
    {
        "LAYOUTS": "packing",
        "CannotCompileError": "tape",
        "CompiledClassifier": "compiled",
        "CompiledDecoder": "compiled",
        "Description": "description",
        "FrozenLayer": "frozen",
        "Replay": "cuda_graph",
        "costs": "cost",
        "find_run": "load",
        "find_source": "sources",
        "freeze": "frozen",
        "fuse_norms": "fused_norm",
        "load_packed": "packed_file",
        "load_run": "load",
        "read_packed": "packed_file",
        "save_packed": "packed_file",
        "sizes": "packed_file",
    },
)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
