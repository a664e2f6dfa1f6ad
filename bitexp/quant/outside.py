"""What other modules see of a layer's weights while a model runs: what they are, but no factors.

A module that multiplies by `layer.weight` itself (attention by one fused call, a fast path of evaluation)
computes in full precision what looks quantized, and a frozen layer has no such weights at all. Its type,
device and shape are what networks ask for before they convert an input; these it tells.

Every operation of torch finds that these tensors have rules of their own. So `nn.TransformerEncoderLayer`
leaves its fast path, which would take all weights past their layers, and calls these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

LOOKS = {
    "device", "dim", "dtype", "element_size", "get_device", "grad_fn", "is_complex", "is_contiguous",
    "is_cpu", "is_cuda", "is_floating_point", "is_leaf", "is_meta", "is_mps", "is_nested", "is_quantized",
    "is_sparse", "is_xpu", "itemsize", "layout", "names", "ndim", "nelement", "numel", "requires_grad",
    "shape", "size", "stride",
}  # fmt: skip
"""What a tensor tells of itself without its numbers, as torch's functions are called."""

PRODUCTS = {
    "__matmul__", "__rmatmul__", "addbmm", "addmm", "addmv", "baddbmm", "bilinear", "bmm", "chain_matmul",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
    "einsum", "embedding", "linear", "matmul", "mm", "multi_dot", "multi_head_attention_forward", "mv",
    "tensordot",
}  # fmt: skip
"""What a layer of weights does with an input."""

READ = (
    "the weights of the quantized layer '{layer}' are multiplied past it, in full precision; exclude it "
    "(quantizer.exclude, or model.full_precision), or call the layer instead"
)
PACKED = (
    "the frozen layer '{layer}' has no weights to compute with ({function}): they are packed codes, which "
    "only the layer itself multiplies"
)


class WeightsRead(RuntimeError):
    """A module computes with the weights of a quantized layer past it."""


_witnesses: list[set[str]] = []
"""Where reads are written down instead of refused."""


@contextlib.contextmanager
def noticed() -> Iterator[set[str]]:
    """Lets every operation on weights as others see them pass, and gives the names of their layers."""
    layers: set[str] = set()
    _witnesses.append(layers)
    try:
        yield layers
    finally:
        _witnesses.remove(layers)


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a function of torch."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors(value)


class SeenWeight(Tensor):
    """Weights as other modules see them; `layer` is their layer's name."""

    layer: str

    @classmethod
    def seen(cls, weight: Tensor, layer: str) -> Self:
        """An alias of weights."""
        alias = weight.as_subclass(cls)
        if not is_dynamo_compiling():
            alias.layer = layer
        return alias

    @classmethod
    def refusal(cls, layer: str, function: str, others: bool) -> str | None:
        """Why an operation is not done, or None; `others` says whether other tensors take part."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__ if func.__name__ != "__get__" else func.__self__.__name__  # type: ignore[attr-defined]
        if name in LOOKS:
            return super().__torch_function__(func, types, args, kwargs)
        given = list(tensors((*args, *kwargs.values())))
        layer = next((getattr(t, "layer", "") for t in given if isinstance(t, SeenWeight)), "")
        if _witnesses:
            _witnesses[-1].add(layer)
        elif reason := cls.refusal(layer, name, any(not isinstance(t, SeenWeight) for t in given)):
            raise WeightsRead(reason)
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, SeenWeight) and not is_dynamo_compiling():
            result.layer = layer
        return result


class LatentWeight(SeenWeight):
    """The latent weights of a layer in training: they may be looked at, and not multiplied with others."""

    @classmethod
    def refusal(cls, layer: str, function: str, others: bool) -> str | None:
        if function not in PRODUCTS or not others:
            return None
        return READ.format(layer=layer)


class PackedWeight(SeenWeight):
    """What a frozen layer has in the place of its weights: their dtype, device and shape."""

    @classmethod
    def like(
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layer: str
    ) -> PackedWeight:
        """Of one number in memory."""
        return cls.seen(torch.empty((), dtype=dtype, device=device).expand(shape), layer)

    @classmethod
    def refusal(cls, layer: str, function: str, others: bool) -> str | None:
        return PACKED.format(layer=layer, function=function)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return PackedWeight.like(tuple(self.shape), self.dtype, self.device, self.layer)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return PackedWeight.like, (tuple(self.shape), self.dtype, self.device, self.layer)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedWeight({list(self.shape)})"
