"""BitLinear and BitConv2d: norm, quantize, multiply integers, scale; gradients by the rules of the parts.

x   = sparsifier(transform(norm(input)))
x_q, s_x = activations.codes(x)                one scale per token
w_q, s_w, b_w = weights.quantize(latents)      anew in every forward
y = output_norm((x_q @ w_q^T) * (s_x * s_w) + s_x * sum(x_q) * b_w) + bias + offset of the weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from bitexp.quant.autograd import quantized_product
from bitexp.quant.backend import TORCH, Backend, Call
from bitexp.quant.carriers import OutputCarrier, carried
from bitexp.quant.checks import check_exact, check_input, unfit_parameters
from bitexp.quant.endings import constant_codes, ended
from bitexp.quant.modes import autocasts, in_forward, in_memory, no_autocast, own, result_dtype
from bitexp.quant.norms import native_norm, normed
from bitexp.quant.options import LayerOptions, LayerParts
from bitexp.quant.outside import LatentWeight
from bitexp.quant.parts import ActivationQuantizer
from bitexp.quant.presets import as_quantizer
from bitexp.quant.product import Quantized
from bitexp.quant.quantizer import Quantizer
from bitexp.quant.spec import ConvArgs, Geometry, LayerSpec
from bitexp.quant.way import Way, earlier_parts, spec_of

Chosen = Quantizer | Mapping[str, object] | str | LayerOptions
"""A quantizer (or its config, or its name), or the options of a layer."""


OWN = (
    "weight", "bias", "mix", "parts", "earlier", "name", "options", "backend", "phasing", "stage", "ends",
    "specs", "ways",
)  # fmt: skip
"""What a quantized layer has for itself."""


class QuantizedLayer(nn.Module):
    """What BitLinear and BitConv2d share: latent weights and the parts that quantize them and the input.

    `set_progress` chooses among the stages of the parts. lambda in [0, 1] phases quantization in:
    activations and weights are `v + lambda * (Q(v) - v)` with a straight-through gradient. At 1 the product
    is over integers.

    Other modules that read `weight` while they are called get a `LatentWeight`, which they cannot multiply
    with. `name` is the layer's in the model, for messages.
    """

    mix: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        options: LayerOptions,
        conv: ConvArgs | None,
        stages: Sequence[tuple[float, LayerOptions]] = (),
    ) -> None:
        """`stages` are the options that hold at first, each until a share of the training."""
        super().__init__()
        if reason := unfit_parameters(weight, bias):
            raise ValueError(reason)
        self.weight: Tensor = weight  # parameters, both
        self.bias: Tensor | None = bias
        self.name = ""
        self.options = options
        self.backend: Backend = TORCH
        self.phasing = False
        self.register_buffer("mix", torch.ones((), device=weight.device), persistent=False)
        self.stage = len(stages)
        self.ends = tuple(until for until, _ in stages)
        if options.weights is None:
            self.specs = [LayerSpec(tuple(weight.shape), conv, options.norm, activations=None, weights=None)]
            vars(self).update(self.spec.attributes())
            return
        self.parts = options.parts(weight, conv)
        earlier = [earlier_parts(self.parts, options, o, weight, conv) for _, o in stages]
        if earlier:
            self.earlier = nn.ModuleList(earlier)
        everything = [*((o, p) for (_, o), p in zip(stages, earlier, strict=True)), (options, self.parts)]
        self.specs = [spec_of(o, p, weight, conv) for o, p in everything]
        self.ways = [Way.of(spec, p) for spec, (_, p) in zip(self.specs, everything, strict=True)]
        self.parts.weights.scale_shape(weight)  # refused here, and not at the first forward
        for spec in self.specs:
            check_exact(spec)
        vars(self).update(self.spec.attributes())

    @property
    def spec(self) -> LayerSpec:
        """This layer without its tensors, as it is at this share of the training."""
        return self.specs[self.stage]

    @property
    def active(self) -> LayerParts:
        """The parts that hold at this share of the training."""
        return self.ways[self.stage].parts

    def set_progress(self, share: float) -> None:
        """Chooses the stage for a share of the training, 0 to 1, and tells it the parts."""
        self.stage = sum(share >= end for end in self.ends)
        if self.options.weights is not None:
            for part in self.active.all():
                part.set_progress(share)

    def set_lambda(self, value: float) -> None:
        """Sets lambda: 1 is fully quantized, 0 leaves the norm alone."""
        self.phasing = value != 1.0
        self.mix.fill_(value)

    def set_backend(self, backend: Backend) -> None:
        """Sets how this layer multiplies, rounds and makes a training step."""
        self.backend = backend
        if self.options.weights is not None:
            self.parts.weights.backend = backend

    def quantizer_parameters(self) -> Iterator[nn.Parameter]:
        """What the parts of this layer learn."""
        if self.options.weights is not None:
            yield from self.parts.parameters()
            for parts in getattr(self, "earlier", ()):
                yield from parts.parameters()

    def quantized(self) -> Quantized:
        """The weights as integers, apart from any graph."""
        return self._quantize(own(self, "weight"))

    @torch.no_grad()
    def hold(self, quantized: Quantized) -> None:
        """Has the weights be these from now on, and the latents what they stand for, where that is told."""
        self.parts.weights.hold(quantized)
        if not self.ways[-1].rotates:
            own(self, "weight").copy_(quantized.dequantized())

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        if name == "weight" and (is_dynamo_compiling() or in_memory(value)) and in_forward():
            return LatentWeight.seen(value, self.name)
        return value

    def rounding_gradient(self) -> Tensor:
        """The gradient of half the squared distance of the weights from their quantized values."""
        with torch.enable_grad():
            weight = own(self, "weight").detach().requires_grad_()
            rotated = self.rotated(weight)
            distance = rotated - self._quantize(weight).dequantized()
            return torch.autograd.grad(distance.square().sum() / 2, weight)[0]

    def output_bias(self, quantized: Quantized) -> Tensor | None:
        """The bias, and what the weights add to the outputs."""
        weights, bias = self.ways[self.stage].weights, own(self, "bias")
        if not weights.has_output_offset:
            return bias
        offset = weights.output_offset(self.rotated(own(self, "weight")), quantized.codes)
        if self.phasing and offset is not None:
            offset = self.mix * offset
        return offset if bias is None or offset is None else bias + offset

    def forward(self, input: Tensor) -> Tensor:
        check_input(input)
        if self.options.weights is None:
            return self._plain_forward(input)
        if not autocasts(input):
            return self._quantized_forward(input, input.dtype)
        dtype = result_dtype(input)
        with no_autocast(input):
            return self._quantized_forward(input, dtype)

    def _quantized_forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        way, weight = self.ways[self.stage], own(self, "weight")
        quantized = self._quantize(weight, self.training)
        bias = self.output_bias(quantized)
        grad_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        call = Call(way.spec, self.backend, dtype, grad_dtype, fused=True)
        if way.carries:
            latent = self.rotated(weight)
            weight = carried(latent, way.weights, quantized, self.mix if self.phasing else None)
        if way.ends:
            call = call._replace(dtype=torch.float32)
        y = self._product(x, weight, bias if way.spec.output_norm == "none" else None, quantized, call, way)
        if way.ends and not self.phasing and way.coder is not None and way.coder.has_shift:
            y = y + self._constant(x, weight, quantized, call, way.coder.shift.detach())
        if way.ends:
            transform = way.parts.transform
            added = (
                None
                if transform is None or not transform.has_addend
                else transform.addend(self._normed(x), way.spec)
            )
            y = ended(y, added, bias, way.spec).to(dtype)
        gradients = way.parts.gradients
        return y if gradients is None or not self.training else OutputCarrier.apply(y, gradients)

    def _product(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, quantized: Quantized, call: Call, way: Way
    ) -> Tensor:
        if self.phasing:
            return self._mixed(x, weight, bias, quantized, call)
        codes = scale = None
        share = way.weights.latent_share() if self.training else None
        if share is not None or way.prepares:
            x, call = self.prepared(x), call._replace(spec=way.inner)
        beside = None
        if share is not None:
            beside = share * ordinary_product(x, self.rotated(own(self, "weight")).float(), way.spec)
        if way.coder is not None:
            codes, scale = self._activation_codes(way.coder, x.detach())
            x = carried(x, way.coder, Quantized(codes, scale))
        y = quantized_product(x, weight, bias, quantized, call, codes, scale)
        return y if beside is None else y + beside.to(y.dtype)

    def _activation_codes(self, act: ActivationQuantizer, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not act.calibrated:
            act.calibrate(x)
        return act.codes(x, Geometry(self.spec.conv).scale_dims)

    def _constant(self, x: Tensor, weight: Tensor, quantized: Quantized, call: Call, shift: Tensor) -> Tensor:
        """What a shift of all activations adds to the outputs: the product of one token of this value."""
        codes, scale = constant_codes(x, shift, self.spec.conv)
        call = call._replace(spec=replace(call.spec, norm="none"))
        return quantized_product(codes * scale, weight, None, quantized, call, codes, scale)

    def _normed(self, x: Tensor) -> Tensor:
        at = Geometry(self.spec.conv)
        return normed(x.float(), self.spec.norm, at.feature_dim, self.backend.normalize)

    def prepared(self, x: Tensor) -> Tensor:
        """The input after norm, transform and sparsifier, in fp32, with a graph."""
        parts, dim = self.active, Geometry(self.spec.conv).feature_dim
        x = self._normed(x)
        if parts.transform is not None:
            x = parts.transform(x, dim)
        return x if parts.sparsifier is None else parts.sparsifier(x, dim)

    def rotated(self, weight: Tensor) -> Tensor:
        """The latent weights as they are quantized: mapped along their inputs where the transform says so."""
        transform = self.active.transform
        if transform is None or not transform.on_weights:
            return weight
        rotated: Tensor = transform(weight.float(), Geometry(self.spec.conv).feature_dim)
        return rotated

    def _quantize(self, weight: Tensor, training: bool = False) -> Quantized:
        way = self.ways[self.stage]
        return way.weights.quantize(self.rotated(weight.detach()) if way.rotates else weight, training)

    def _mixed(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, quantized: Quantized, call: Call
    ) -> Tensor:
        """The same product on floats: what is lambda of the way from `v` to `Q(v)`, on both sides."""
        spec, act, at = call.spec, self.active.activations, Geometry(call.spec.conv)
        x = self.prepared(x)
        values, scaled_by = x.detach(), None
        if act is not None:
            codes, scaled_by = self._activation_codes(act, values)
            x = carried(x, act, Quantized(codes, scaled_by), self.mix)
            values = values + self.mix * (act.dequantized(codes, scaled_by) - values)
        latent = self.rotated(own(self, "weight")).detach().float()
        mixed = Quantized(
            latent + self.mix * (quantized.dequantized() - latent),
            torch.ones_like(self.mix, dtype=torch.float32),
        )
        plain_bias = bias if spec.bias == "plain" else None
        call = call._replace(
            spec=replace(spec, norm="none", activations=None, bias="plain"), dtype=torch.float32, fused=False
        )
        y = quantized_product(x, weight, plain_bias, mixed, call, values)
        if spec.bias == "scaled" and bias is not None:
            assert scaled_by is not None
            y = y + at.spread(bias.float()) * (scaled_by * quantized.scale)
        return y

    def _plain_forward(self, x: Tensor) -> Tensor:
        """The ordinary layer after the norm, in the precision that the ordinary layer would have."""
        inputs = native_norm(x.float(), self.spec.norm, Geometry(self.spec.conv).feature_dim)[0].to(x.dtype)
        return ordinary_product(inputs, own(self, "weight"), self.spec, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.mix
        super()._apply(fn, recurse)
        if self.mix.dtype != exact.dtype:  # lambda in bf16 would be another
            self.mix = exact.to(self.mix.device)
        return self

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, bias={self.bias is not None}, norm={self.spec.norm}"


class BitLinear(QuantizedLayer):
    """A quantized `nn.Linear`: `[..., in] -> [..., out]`, one activation scale per token.

    Takes over the parameters of `linear` (the same objects, so ties and optimizer state survive).

    Args:
        quantizer: a preset's name, a quantizer, its config, or the options of this layer.

    Raises:
        ValueError: the quantizer cannot be used for this layer.
    """

    def __init__(
        self,
        linear: nn.Linear,
        quantizer: Chosen = "ternary_mean",
        stages: Sequence[tuple[float, LayerOptions]] = (),
    ) -> None:
        super().__init__(linear.weight, linear.bias, options_of(quantizer), None, stages)
        self.training = linear.training


class BitConv2d(QuantizedLayer):
    """A quantized `nn.Conv2d`: the same on unfolded patches. Arguments and errors as `BitLinear`.

    The norm runs over the channels at each pixel and one activation scale covers a whole sample, so
    that an image is quantized once and not once per patch.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        quantizer: Chosen = "ternary_mean",
        stages: Sequence[tuple[float, LayerOptions]] = (),
    ) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"BitConv2d pads with zeros by a number of pixels; padding={conv.padding!r} with "
                f"padding_mode={conv.padding_mode!r} is not supported"
            )
        options = options_of(quantizer)
        if options.weights is not None and options.weights.options.get("granularity") == "group":
            raise ValueError("granularity=group is for linear layers; use channel for convolutions")
        args = (pair(conv.stride), pair(conv.padding), pair(conv.dilation), conv.groups)
        super().__init__(conv.weight, conv.bias, options, args, stages)
        self.training = conv.training
        transform = self.active.transform if options.weights is not None else None
        if conv.groups > 1 and transform is not None and transform.on_weights:
            raise ValueError("a transform of activations and weights mixes the groups of a convolution")

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3:
            return super().forward(input[None])[0]
        return super().forward(input)


def ordinary_product(x: Tensor, weight: Tensor, spec: LayerSpec, bias: Tensor | None = None) -> Tensor:
    """What an ordinary layer of this geometry computes."""
    if spec.conv is None:
        return F.linear(x, weight, bias)
    stride, padding, dilation, groups = spec.conv
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def pair(value: tuple[int, ...]) -> tuple[int, int]:
    """A convolution argument as (height, width)."""
    return value[0], value[-1]


def options_of(quantizer: Chosen) -> LayerOptions:
    """The options of a layer without a name."""
    return quantizer if isinstance(quantizer, LayerOptions) else as_quantizer(quantizer).options


def set_lambda(model: nn.Module, value: float) -> None:
    """Sets lambda in every quantized layer of the model."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.set_lambda(value)


def set_progress(model: nn.Module, share: float) -> None:
    """Chooses the stage for a share of the training, 0 to 1, in every quantized layer of the model."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.set_progress(share)


def set_backend(model: nn.Module, backend: Backend) -> None:
    """Sets how every quantized layer of the model multiplies, rounds and makes its training step."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.set_backend(backend)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model by dotted name, those with weights in full precision left out."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer) and module.options.weights is not None
    }
