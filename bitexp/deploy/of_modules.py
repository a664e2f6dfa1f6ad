"""What tapes have in common: the modules of a network by their names, and its norms."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bitexp.quant.spec import EPS, LayerSpec

V = TypeVar("V")
"""What a tape gives for a tensor."""


class OfModules(Generic[V]):
    """The part of a tape that does not depend on who plays it. A subclass gives `normed` and `refusal`.

    Attributes:
        names: of the modules, by their id.
    """

    names: dict[int, str]

    def normed(
        self, x: V, centered: bool, eps: float, weight: Tensor | None = None, bias: Tensor | None = None, /
    ) -> V:
        """The norm of x, a layer norm or an RMS norm, taken once for all that want the same."""
        raise NotImplementedError

    def refusal(self, text: str) -> ValueError:
        """The error for what cannot be played."""
        raise NotImplementedError

    def own_norm(self, spec: LayerSpec, x: V) -> V:
        """x as a layer with a norm of its own has it."""
        return x if spec.norm == "none" else self.normed(x, spec.norm == "layer", EPS)

    def norm(self, norm: nn.Module, x: V) -> V:
        """x after a layer or RMS norm; an identity is x itself."""
        if isinstance(norm, nn.Identity):
            return x
        kind = self.checked(norm, nn.LayerNorm, nn.RMSNorm)
        eps = torch.finfo(torch.float32).eps if kind.eps is None else kind.eps
        return self.normed(x, isinstance(kind, nn.LayerNorm), eps, kind.weight, getattr(kind, "bias", None))

    def checked(self, module: nn.Module, *kinds: type[nn.Module]) -> Any:
        """The module, which must be exactly of one of these classes."""
        if type(module) not in kinds:
            raise self.refusal(f"{self.name(module)} is a {type(module).__name__}")
        return module

    def name(self, module: nn.Module) -> str:
        """Of a module, as the network has it."""
        return self.names.get(id(module), type(module).__name__)
