"""Frozen layers: the latents are gone, the codes are packed, a kernel multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitexp.deploy.packing import LAYOUTS, choose_layout
from bitexp.kernels.registry import Kernel
from bitexp.quant.layers import QuantizedLayer, quantized_layers
from bitexp.quant.norms import normalize
from bitexp.quant.spec import ConvArgs, Geometry, Norm


@dataclass(frozen=True)
class FrozenSpec:
    """All that a frozen layer is besides its tensors; plain JSON values."""

    shape: tuple[int, ...]
    layout: str
    norm: Norm
    act_qmax: int
    scaled_bias: bool
    conv: ConvArgs | None

    def to_json(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> FrozenSpec:
        """Back from `to_json`, lists turned into tuples."""
        conv = data["conv"]
        args = None if conv is None else (*(tuple(c) for c in conv[:3]), conv[3])
        return FrozenSpec(**{**data, "shape": tuple(data["shape"]), "conv": args})


class FrozenLayer(nn.Module):
    """A quantized layer with packed weights: buffers `packed` (uint8), `scale` and `bias`."""

    packed: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self, spec: FrozenSpec, packed: Tensor, scale: Tensor, bias: Tensor | None, kernel: Kernel
    ) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.use(kernel)

    def use(self, kernel: Kernel) -> None:
        """Prepares the weights for a kernel; on the device where they lie now."""
        inputs = torch.Size(self.spec.shape[1:]).numel()
        codes = LAYOUTS[self.spec.layout].unpack(self.packed, inputs).reshape(self.spec.shape)
        self.kernel = kernel
        self.prepared = kernel.prepare(codes, self.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.use(self.kernel)  # the prepared weights follow the buffers to another device
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.use(self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            y = self._forward(x)
            return y if y.dtype == x.dtype else y.to(x.dtype)
        with torch.autocast(device, enabled=False):
            return self._forward(x).to(torch.get_autocast_dtype(device))

    def _forward(self, x: Tensor) -> Tensor:
        spec = self.spec
        x = x.float()
        if spec.norm != "none":
            x = normalize(x, spec.norm, Geometry(spec.conv).feature_dim)[0]
        if spec.conv is None:
            return self.kernel.linear(x, self.prepared, self.bias, spec.act_qmax, spec.scaled_bias)
        return self.kernel.conv2d(x, self.prepared, self.bias, spec.act_qmax, spec.scaled_bias, spec.conv)

    def extra_repr(self) -> str:
        return f"{list(self.spec.shape)}, {self.spec.layout}, norm={self.spec.norm}"


def freeze_layer(layer: QuantizedLayer, layout: str, kernel: Kernel) -> FrozenLayer:
    """The frozen twin of a trained layer, in fp32; `layout` may be `auto`."""
    codes, scale = layer.quantizer.weights(layer.weight)
    name = choose_layout(layout, codes)
    packed = LAYOUTS[name].pack(codes.flatten(1))
    bias = None if layer.bias is None else layer.bias.detach().float().clone()
    return FrozenLayer(spec_of(layer, name), packed, scale.clone(), bias, kernel)


def blank_twin(layer: QuantizedLayer, layout: str, kernel: Kernel) -> FrozenLayer:
    """A frozen twin that holds nothing yet, for `load_state_dict` to fill."""
    codes, scale = layer.quantizer.weights(layer.weight)
    shape = LAYOUTS[layout].packed_shape(*codes.flatten(1).shape)
    packed = torch.zeros(shape, dtype=torch.uint8, device=codes.device)
    bias = None if layer.bias is None else torch.zeros_like(layer.bias, dtype=torch.float32)
    return FrozenLayer(spec_of(layer, layout), packed, torch.zeros_like(scale), bias, kernel)


def spec_of(layer: QuantizedLayer, layout: str) -> FrozenSpec:
    """What a layer's frozen twin is besides its tensors."""
    return FrozenSpec(
        shape=tuple(layer.weight.shape),
        layout=layout,
        norm=layer.norm,
        act_qmax=layer.quantizer.act_qmax,
        scaled_bias=layer.quantizer.bias == "scaled",
        conv=layer.conv,
    )


def freeze(model: nn.Module, layout: str, kernel: Kernel) -> dict[str, FrozenLayer]:
    """Replaces every quantized layer of the model, in place, by its frozen twin; returns them by name."""
    layers = quantized_layers(model)
    if "" in layers:
        raise ValueError("the model is a single layer and cannot be replaced in place: wrap it in a module")
    frozen = {name: freeze_layer(layer, layout, kernel) for name, layer in layers.items()}
    put_twins(model, {id(layers[name]): twin for name, twin in frozen.items()})
    return frozen


def put_twins(model: nn.Module, twins: Mapping[int, nn.Module]) -> None:
    """Replaces modules by the twin under their id, at every place where they stand."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in twins:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, twins[id(module)])
