"""What happens inside of a network while it runs: a model's class says where its parts are.

    taps: ClassVar[Taps] = {"hidden": Tap("blocks.*"), "query": Tap("blocks.*.attn.q")}

`Watch` keeps what those modules give out in a forward; the network computes as it does without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Tap(NamedTuple):
    """Modules by their dotted names, `*` for any one part of it; and which share of what they give out."""

    modules: str
    number: int = 0
    of: int = 1
    """Where one module computes several: number 0 `of` 3 is the first third of the last dimension."""


Taps = Mapping[str, Tap]
"""By what is seen: `hidden` states after each layer; `query`, `key` and `value` of each attention, before
positions are turned into them."""


class Watch:
    """Within `with watch:`, every forward of the model leaves in `seen` what its parts gave out, by depth.

    The hooks are the same functions every time, since a compiled model keeps those that it was traced with.

    Raises:
        ValueError: the model does not say where such a part is, or has none.
    """

    def __init__(self, model: nn.Module, parts: Iterable[str]) -> None:
        self.seen: dict[str, list[Tensor]] = {}
        self._hooks: list[tuple[nn.Module, Any]] = []
        self._handles: list[RemovableHandle] = []
        taps: Taps = getattr(model, "taps", {})
        for part in parts:
            modules = modules_of(model, taps[part].modules) if part in taps else []
            if not modules:
                raise ValueError(f"{type(model).__name__} does not say where its {part} states are")
            self.seen[part] = [None] * len(modules)  # type: ignore[list-item]
            self._hooks += [(m, self._hook(part, depth, taps[part])) for depth, m in enumerate(modules)]

    def _hook(self, part: str, depth: int, tap: Tap) -> Any:
        states = self.seen[part]

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            states[depth] = output if tap.of == 1 else output.chunk(tap.of, -1)[tap.number]

        return keep

    def __enter__(self) -> Self:
        self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> dict[str, list[Tensor]]:
        """What was seen last, which is then forgotten here: it would keep the graph of a step in memory."""
        taken = {part: list(states) for part, states in self.seen.items()}
        for states in self.seen.values():
            states[:] = [None] * len(states)  # type: ignore[list-item]
        return taken


def modules_of(model: nn.Module, pattern: str) -> list[nn.Module]:
    """The modules that a pattern names, in the order of the model."""
    names = re.compile(re.escape(pattern).replace(r"\*", "[^.]+"))
    return [module for name, module in model.named_modules() if names.fullmatch(name)]
