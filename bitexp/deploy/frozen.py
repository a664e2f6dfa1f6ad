"""Frozen layers: the latents are gone, the codes are packed, a kernel multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitexp.deploy.packing import Layout, choose_layout, layout_of
from bitexp.kernels import Kernel, as_kernel
from bitexp.quant.autograd import quantized_product
from bitexp.quant.backend import Call
from bitexp.quant.carriers import carried
from bitexp.quant.checks import check_input
from bitexp.quant.endings import constant_codes, ended
from bitexp.quant.layers import OWN, QuantizedLayer, quantized_layers
from bitexp.quant.modes import autocasts, no_autocast, recorded, result_dtype
from bitexp.quant.norms import normed
from bitexp.quant.options import build
from bitexp.quant.outside import PackedWeight
from bitexp.quant.parts import ActivationQuantizer, Sparsifier, Transform
from bitexp.quant.product import Quantized
from bitexp.quant.spec import Geometry, LayerSpec
from bitexp.quant.twins import become, carry_over


@dataclass(frozen=True)
class Packing:
    """How a layer's codes lie in bytes: the layout by name, and as it is with the layer's levels."""

    name: str
    layout: Layout

    @staticmethod
    def of(name: str, spec: LayerSpec) -> Packing:
        """A layout by name, or `auto`, for a layer. Raises `ValueError` where it has too few digits."""
        chosen = choose_layout(name, spec.levels)
        return Packing(chosen, layout_of(chosen, spec.levels))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "low": self.layout.low, "stride": self.layout.stride}


class FrozenLayer(nn.Module):
    """A quantized layer with packed weights: buffers `packed` (uint8), `scale`, `shift` and `bias`.

    Of its parts it keeps those that the input goes through, with what they have learned. The gradient of an
    input is the trained layer's, by the straight-through rule; then the codes are unpacked at every call.
    Networks that ask for `weight.dtype` and the like are answered; there are no weights to compute with.
    """

    packed: Tensor
    scale: Tensor
    shift: Tensor | None
    bias: Tensor | None
    activations: ActivationQuantizer | None
    transform: Transform | None
    sparsifier: Sparsifier | None
    differentiated: Tensor | None
    """What gets the gradient of the dequantized weights, in their shape, where the input has one as well."""

    def __init__(
        self,
        spec: LayerSpec,
        packing: Packing,
        packed: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        bias: Tensor | None,
        kernel: Kernel,
    ) -> None:
        super().__init__()
        self.name = ""
        self.spec, self.packing = spec, packing
        self.differentiated: Tensor | None = None
        vars(self).update(spec.attributes())
        for name, tensor in (("packed", packed), ("scale", scale), ("shift", shift), ("bias", bias)):
            self.register_buffer(name, tensor)
        at, activations = Geometry(spec.conv), spec.activations.part if spec.activations else None
        features = at.features(spec.shape)
        self.activations = build("activations", activations, at, features=features)
        self.transform = build("transform", spec.transform, at, features=features)
        self.sparsifier = build("sparsifier", spec.sparsifier, at, features=features)
        self.show_weight(torch.float32)
        self.use(kernel)

    @property
    def weight(self) -> PackedWeight:
        """What other modules may ask of weights: dtype, device, shape."""
        return self.shown_weight

    def show_weight(self, dtype: torch.dtype) -> None:
        """Makes what is shown as weights, beforehand: under fake tensors it cannot be made."""
        self.dtype = dtype
        self.shown_weight = PackedWeight.like(self.spec.shape, dtype, self.scale.device, self.name)

    def use(self, kernel: Kernel) -> None:
        """Prepares the weights for a kernel; on the device where they lie now."""
        self.kernel = kernel
        self.prepared = kernel.prepare(self._codes(), self.scale, self.shift)
        activations = self.spec.activations
        self.kernel_makes_codes = activations is None or activations.absmax is not None
        mapped = self.spec.transform is not None or self.spec.sparsifier is not None
        self.kernel_takes_norm = not mapped and kernel.takes_norm(self.prepared, self.spec)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(kept, recurse)  # another precision is for what lies around it: rounding is for good
        self.show_weight(fn(torch.empty(0, dtype=self.dtype, device=self.shown_weight.device)).dtype)
        self.use(self.kernel)  # the prepared weights follow the buffers to another device
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.use(self.kernel)

    def forward(self, input: Tensor) -> Tensor:
        check_input(input)
        if not autocasts(input):
            y = self._forward(input)
            return y if y.dtype == input.dtype else y.to(input.dtype)
        dtype = result_dtype(input)
        with no_autocast(input):
            return self._forward(input).to(dtype)

    def _forward(self, x: Tensor) -> Tensor:
        spec = self.spec
        x = x.float()
        if self.kernel_takes_norm and not recorded(x):
            return self.kernel.forward(x, self.prepared, self.bias, spec, spec.norm)
        if spec.norm != "none":
            x = normed(x, spec.norm, Geometry(spec.conv).feature_dim, self.kernel.backend.normalize)
        added = (
            None
            if self.transform is None or not self.transform.has_addend
            else self.transform.addend(x, spec)
        )
        bias = self.bias if spec.output_norm == "none" else None
        if spec.transform is not None or spec.sparsifier is not None:
            x = self._mapped(x)
        y = self._straight_through(x, bias) if recorded(x) else self._product(x, bias)
        return ended(y, added, self.bias, spec)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.kernel_makes_codes:
            return self.kernel.forward(x, self.prepared, bias, self.spec)
        assert self.activations is not None
        codes, scale = self.activations.codes(x, Geometry(self.spec.conv).scale_dims)
        y = self.kernel.forward_codes(codes, scale, self.prepared, bias, self.spec)
        return self._shifted(y, x)

    def _shifted(self, y: Tensor, x: Tensor) -> Tensor:
        """With what a shift of the activations adds."""
        if self.activations is None or not self.activations.has_shift:
            return y
        codes, scale = constant_codes(x, self.activations.shift.detach(), self.spec.conv)
        return y + self.kernel.forward_codes(codes, scale, self.prepared, None, self.spec)

    def _mapped(self, x: Tensor) -> Tensor:
        dim = Geometry(self.spec.conv).feature_dim
        x = x if self.transform is None else self.transform(x, dim)
        return x if self.sparsifier is None else self.sparsifier(x, dim)

    def _straight_through(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same output where the gradient of the input is wanted: that of the trained layer."""
        codes = scale = None
        quantized = self.quantized()
        if (act := self.activations) is not None and (act.spec.absmax is None or act.has_rule):
            codes, scale = act.codes(x.detach(), Geometry(self.spec.conv).scale_dims)
            x = carried(x, act, Quantized(codes, scale))
        call = Call(replace(self.spec, norm="none"), self.kernel.backend, torch.float32, torch.float32, False)
        weight = quantized.codes if self.differentiated is None else self.differentiated
        return self._shifted(quantized_product(x, weight, bias, quantized, call, codes, scale), x)

    def quantized(self) -> Quantized:
        """The weights as integers, unpacked."""
        return Quantized(self._codes(), self.scale, self.shift)

    def _codes(self) -> Tensor:
        """The int8 codes of the weights, in their shape; on `meta` nothing else is known of them."""
        if self.packed.is_meta:
            planes = [self.spec.levels.planes] if self.spec.levels.planes > 1 else []
            return torch.empty((*planes, *self.spec.shape), dtype=torch.int8, device="meta")
        inputs = torch.Size(self.spec.shape[1:]).numel()
        codes = self.packing.layout.unpack(self.packed, inputs)
        return codes.reshape(*codes.shape[:-2], *self.spec.shape)

    def extra_repr(self) -> str:
        return f"{list(self.spec.shape)}, {self.packing.name}, norm={self.spec.norm}"


def freeze_layer(layer: QuantizedLayer, layout: str, kernel: Kernel) -> FrozenLayer:
    """The frozen twin of a trained layer, in fp32; `layout` may be `auto`.

    Raises:
        ValueError: lambda is below 1, or the layout cannot hold the codes.
    """
    if layer.phasing:
        raise ValueError(
            f"lambda is {float(layer.mix):g}, and a frozen layer is quantized fully: it would give other "
            "numbers; use set_lambda(model, 1.0) first, and test what is frozen then"
        )
    quantized = layer.quantized()
    codes, scale, shift = quantized
    packing = Packing.of(layout, layer.spec)
    packed = packing.layout.pack(codes.flatten(codes.dim() - layer.weight.dim() + 1))
    bias = layer.output_bias(quantized)
    bias = None if bias is None else bias.detach().float().clone()
    twin = FrozenLayer(layer.spec, packing, packed, scale.clone(), shift, bias, kernel)
    attach(layer, twin)
    for name in ("activations", "transform", "sparsifier"):
        if (part := getattr(layer.active, name)) is not None:
            getattr(twin, name).load_state_dict(part.state_dict())
    return twin


def blank_twin(layer: QuantizedLayer, packing: Packing, kernel: Kernel) -> FrozenLayer:
    """A frozen twin that holds nothing yet, for `load_state_dict` to fill."""
    quantized = layer.quantized()
    codes, scale, shift = quantized
    shape = packing.layout.packed_shape(*layer.weight.flatten(1).shape)
    packed = torch.zeros(shape, dtype=torch.uint8, device=codes.device)
    bias = layer.output_bias(quantized)
    bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    first = as_kernel("reference") if packed.is_meta else kernel  # others look at the codes
    twin = FrozenLayer(layer.spec, packing, packed, torch.zeros_like(scale), shift, bias, first)
    twin.kernel = kernel
    attach(layer, twin)
    return twin


def attach(layer: QuantizedLayer, twin: FrozenLayer) -> None:
    """Gives a frozen layer the name, the dtype and all that was attached to the layer that it was.

    Where the weights are computed (parametrizations, pruning), what computes them is gone with them.
    """
    twin.name = layer.name
    twin.show_weight(layer.weight.dtype)
    apart = {*OWN, *layer.spec.attributes()}
    if not isinstance(layer.weight, nn.Parameter):
        state = (*vars(layer), *(name for name, _ in layer.named_parameters(recurse=False)))
        state += tuple(name for name, _ in layer.named_buffers(recurse=False))
        apart |= {"parametrizations", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"}
        apart |= {name for name in state if name.startswith(("weight_", "bias_"))}
    carry_over(layer, twin, apart)


def freeze(
    model: nn.Module, layout: str = "auto", kernel: Kernel | str = "reference"
) -> dict[str, FrozenLayer]:
    """Makes every quantized layer of the model a frozen one, in place; returns them by name.

    Hooks, and what else was attached to a layer, stay with it.

    Args:
        layout: a name in `bitexp.deploy.packing.LAYOUTS`, or `auto` for the densest that holds a layer's
            codes. kernel: what multiplies, or its name.

    Raises:
        ValueError: the model is a single layer, lambda is below 1, or the layout cannot hold a layer's codes.
    """
    layers = quantized_layers(model)
    if "" in layers:
        raise ValueError("the model is a single layer and cannot be replaced in place: wrap it in a module")
    kernel = as_kernel(kernel)
    frozen = {name: freeze_layer(layer, layout, kernel) for name, layer in layers.items()}
    return become_frozen(layers, frozen)


def become_frozen(
    layers: Mapping[str, QuantizedLayer], twins: Mapping[str, FrozenLayer]
) -> dict[str, FrozenLayer]:
    """Makes of each layer its twin, and gives them as what they are now."""
    for name, twin in twins.items():
        become(layers[name], twin)
    frozen: dict[str, Any] = dict(layers)
    return frozen
