"""A frozen model without weights, to be filled from a file: none is drawn, and none takes memory twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from bitexp.deploy.frozen import FrozenLayer


@contextmanager
def without_weights() -> Iterator[None]:
    """While it is active, matrices that modules of this thread take as parameters have no memory.

    What is tied stays so. Vectors and buffers are made as ever: some are never stored.
    """
    blanks: Any = WeakIdKeyDictionary()
    thread = threading.get_ident()

    def blank(module: nn.Module, name: str, parameter: Any) -> Any:
        ours = threading.get_ident() == thread and type(parameter) is nn.Parameter
        if not ours or parameter.dim() < 2 or parameter.is_meta:
            return None
        if parameter not in blanks:
            blanks[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        return blanks[parameter]

    handle = register_module_parameter_registration_hook(blank)
    try:
        yield
    finally:
        handle.remove()


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts tensors in the place of those of a model, in the same types; kernels prepare what they hold.

    Raises:
        RuntimeError: names or shapes are others, or something is left without memory.
    """
    model.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise RuntimeError("it has tensors that are not stored, computed from those that are")
    for module in model.modules():
        if isinstance(module, FrozenLayer):
            module.show_weight(module.dtype)
