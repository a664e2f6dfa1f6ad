"""The parts of a quantizer, and their registries: a new method is one class here below and one YAML.

    weights      latent weights -> integer codes, scale, shift
    activations  normed input -> integer codes, scale
    transform    of the normed input (and of the weights) before they are quantized
    sparsifier   which inputs count
    estimator    the gradient through rounding
    gradients    what happens to the gradient of the output before the two products of the backward

A layer has parts of its own, which may own one-dimensional fp32 parameters; these are trained like any other.
A constructor that names `features` is given the number of input features (channels) of its layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bitexp.common.registry import Registry
from bitexp.quant.backend import TORCH, Backend
from bitexp.quant.levels import Levels
from bitexp.quant.product import Quantized
from bitexp.quant.spec import EPS, ActivationSpec, Granularity, LayerSpec

HELD = ("held_codes", "held_scale", "held_shift")
"""The buffers of weights that are held."""


def is_held(name: str) -> bool:
    """Whether a tensor of a state is of weights that are held."""
    return name.rpartition(".")[2] in HELD


class Progressive:
    """What may depend on the share of the training, 0 to 1: a gradient may, what is deployed may not."""

    progressive: bool = False
    """Whether it does."""
    progress: Tensor = torch.zeros(())
    """The share, one tensor per part, so that a compiled layer is not compiled anew at every step."""

    def set_progress(self, share: float) -> None:
        """Tells the share of the training."""
        if "progress" not in vars(self):
            self.progress = torch.zeros(())
        self.progress.fill_(share)


class LayerPart(Progressive, nn.Module):
    """A part of one layer. What it learns stays in fp32, whatever the layer is converted to."""

    feature_dim: int = -1
    """Where the input features (or channels) lie; the layer sets it."""

    def per_feature(self, values: Tensor) -> Tensor:
        """`[features]` in a shape that goes with the input."""
        return values if self.feature_dim == -1 else values[:, None, None]

    def initialize(self, weight: Tensor) -> None:
        """Sets what it learns by the latent weights `[out, ...]` of its layer, once, where it needs them."""

    def _apply(self, fn: Any, recurse: bool = True) -> LayerPart:
        def kept(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(kept, recurse)
        return self

    def learned(self) -> tuple[nn.Parameter, ...]:
        """The parameters of this part, in the order in which `gradients` gives their gradients."""
        return tuple(self.parameters(recurse=False))


class WeightQuantizer(LayerPart):
    """How the latent weights of one layer become integers.

    A subclass gives `levels` and `scale`; where rounding is not its way, `codes`; where its gradient is not
    the estimator's, `gradients`. It makes its parameters from `weight` in its constructor.

    Args:
        weight: the latent weights `[out, ...]`.
        granularity: one scale per tensor, per output channel, or per group of inputs.
        group_size: inputs per group; only with `granularity="group"`.
    """

    levels: Levels
    bits: float | None = None
    """Bits per weight where these are not what the levels say."""
    has_shift: bool = False
    """Whether `shift` gives a constant."""
    fixed_scale: ClassVar[bool] = False
    """Whether the scale does not follow the weights."""
    has_output_offset: bool = False
    """Whether `output_offset` gives a constant."""
    density: float = 1.0
    """The share of the weights that can be other than zero."""
    ruled: bool = False
    """Whether a rule says which codes may be together, or codes are not those of the weights themselves."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Options that came after runs and files without them: unsaid where they have their default."""
    estimator: Estimator | None = None
    """None is the straight-through estimator."""

    def set_progress(self, share: float) -> None:
        super().set_progress(share)
        if self.estimator is not None:
            self.estimator.set_progress(share)

    def __init__(
        self, weight: Tensor, *, granularity: Granularity = "tensor", group_size: int | None = None
    ) -> None:
        super().__init__()
        if (granularity == "group") != (group_size is not None):
            raise ValueError(
                f"granularity={granularity} and group_size={group_size} do not fit together: "
                "a group size goes with granularity=group, and only with it"
            )
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size={group_size} must be at least 1")
        self.granularity: Granularity = granularity
        self.group_size = group_size
        self.inputs, self.shape = weight[:1].numel(), weight.shape
        self.backend: Backend = TORCH
        self.holds = False
        self.whole = "at_once" in vars(type(self))
        """Whether `at_once` is asked. No subclass inherits it: it may override what that stands for."""

    def scale(self, rows: Tensor) -> Tensor:
        """The scale of each row in fp32: `[rows, weights] -> [rows, 1]`, or `[planes, rows, 1]`."""
        raise NotImplementedError

    def codes(self, rows: Tensor, scale: Tensor) -> Tensor:
        """The code of each weight, `[rows, weights]`, or `[planes, rows, weights]`.

        Here it is `round(W / scale)` clamped to the levels, half to even.
        """
        return self.backend.rounded(rows, scale, self.levels)

    def sampled(self, rows: Tensor, scale: Tensor) -> Tensor:
        """The codes of one step of training, where rounding is stochastic."""
        return self.codes(rows, scale)

    def at_once(self, weight: Tensor) -> Quantized:
        """What `scale`, `codes` and their like give, apart from any graph, by one call of the backend.

        It is asked only of the very class that defines it.
        """
        raise NotImplementedError

    def shift(self, rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor | None:
        """A constant added to the dequantized weights, `[]` or `[out]`, where `has_shift` says so."""
        return None

    def output_offset(self, weight: Tensor, codes: Tensor) -> Tensor | None:
        """A constant `[out]` added to the outputs, fp32 with a graph, where `has_output_offset` says so."""
        return None

    def latent_share(self) -> Tensor | None:
        """How much of the latent weights is added to the quantized ones in training; None for nothing."""
        return None

    def rows(self, weight: Tensor) -> tuple[Tensor, torch.Size]:
        """Latent weights in fp32, what shares a scale below each other, and the shape of the scales.

        Raises:
            ValueError: the group size does not divide the inputs.
        """
        latent, shape = weight.detach().float(), self.scale_shape(weight)
        return latent.reshape(shape.numel(), latent.numel() // shape.numel()), shape

    def scale_shape(self, weight: Tensor) -> torch.Size:
        """The shape of the scales of latent weights. Raises `ValueError` as `rows` does."""
        if self.granularity == "tensor":
            return torch.Size()
        if self.granularity == "channel":
            return weight.shape[:1]
        size, inputs = self.group_size or 1, weight.shape[1:].numel()
        if inputs % size:
            raise ValueError(f"group_size={size} does not divide the {inputs} inputs of a layer")
        return torch.Size((weight.shape[0], inputs // size))

    def hold(self, quantized: Quantized) -> None:
        """Has the integers be these from now on, whatever the latents are: what a calibration has chosen.

        They are kept in checkpoints, and a part of the same kind that loads one holds them as well.
        """
        for name, value in zip(HELD, quantized, strict=True):
            self.register_buffer(name, None if value is None else value.detach().clone())
        self.holds = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        codes, scale, shift = (state_dict.get(prefix + name) for name in HELD)
        if codes is not None and scale is not None and codes.shape == self.shape:
            self.hold(Quantized(codes, scale, shift))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def quantize(self, weight: Tensor, training: bool = False) -> Quantized:
        """The integers for latent weights `[out, ...]`, apart from any graph; a sample in training."""
        if self.holds:
            return Quantized(*(getattr(self, name) for name in HELD))
        if self.whole:
            return self.at_once(weight)
        with torch.no_grad():
            rows, shape = self.rows(weight)
            scale = self.scale(rows).clamp(min=EPS)
            codes = (self.sampled if training else self.codes)(rows, scale).to(torch.int8)
            shift = self.shift(rows, codes, scale)
            if shift is not None:  # it may be a parameter, and that changes
                shift = shift.detach().clone()
            planes = codes.shape[: codes.dim() - 2]
            return Quantized(codes.reshape(planes + weight.shape), scale.reshape(planes + shape), shift)

    @property
    def codes_are_free(self) -> bool:
        """Whether any of the levels may stand for any weight."""
        return not (self.ruled or self.has_output_offset or self.levels.words or self.levels.planes > 1)

    @property
    def has_rule(self) -> bool:
        """Whether gradients are other than the identity, or parameters want one."""
        return self.estimator is not None or type(self).gradients is not WeightQuantizer.gradients

    @property
    def takes_estimator(self) -> bool:
        """Whether an estimator says what its gradient is, wholly or in part."""
        return type(self).gradients is WeightQuantizer.gradients

    def gradients(
        self, grad: Tensor, weight: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        """With respect to the latent weights and to each learned parameter.

        Args:
            grad: the exact gradient at the dequantized weights; weight: the latents; learned: the parameters.
        """
        if self.estimator is None:
            return (grad,)
        return (self.estimator(grad, weight, quantized.dequantized(), quantized.spread_scale()),)


class ActivationQuantizer(LayerPart):
    """How the normed input of one layer becomes integers. A subclass gives its spec and `codes`.

    Where its gradient is not the estimator's it overrides `gradients`, and where what it learns begins with
    what the first batch says, `calibrate`.
    """

    estimator: Estimator | None = None
    """None is the straight-through estimator."""
    has_shift: bool = False
    """Whether dequantized activations are `codes * scale + shift`; padding stays zero."""
    shift: Tensor
    """A scalar."""

    def __init__(self, spec: ActivationSpec) -> None:
        super().__init__()
        self.spec = spec

    def set_progress(self, share: float) -> None:
        super().set_progress(share)
        if self.estimator is not None:
            self.estimator.set_progress(share)

    @property
    def calibrated(self) -> bool:
        """Whether there is no need for `calibrate` any more."""
        return True

    def calibrate(self, x: Tensor) -> None:
        """Sets what it learns by the first training batch of normed input, in fp32."""

    def codes(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """int8 codes of fp32 x, and their fp32 scale, of size 1 along `dims` (what shares one)."""
        raise NotImplementedError

    @property
    def has_rule(self) -> bool:
        """Whether gradients are other than the identity, or parameters want one."""
        return self.estimator is not None or type(self).gradients is not ActivationQuantizer.gradients

    def gradients(
        self, grad: Tensor, x: Tensor, quantized: Quantized, *learned: Tensor
    ) -> tuple[Tensor, ...]:
        """With respect to x and to each learned parameter, from that at the dequantized activations."""
        if self.estimator is None:
            return (grad,)
        return (self.estimator(grad, x, quantized.codes * quantized.scale, quantized.scale),)

    def dequantized(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The activations that codes stand for, in fp32."""
        values = codes * scale
        return values + self.shift.detach() if self.has_shift else values


class Transform(LayerPart):
    """A linear map of the features before they are quantized.

    A subclass says whether it maps the weights along their inputs as well (`on_weights`).
    """

    on_weights = False
    has_addend = False
    """Whether `addend` gives something."""

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """x with its features, which lie along `dim`, mapped; differentiable."""
        raise NotImplementedError

    def addend(self, x: Tensor, spec: LayerSpec) -> Tensor:
        """What of the normed x is added to the outputs, in a shape that goes with them, past all codes."""
        raise NotImplementedError


class Sparsifier(LayerPart):
    """Which inputs of a token count; the others are zero."""

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """x with zeros where an input does not count; differentiable."""
        raise NotImplementedError


class Estimator(Progressive):
    """A rule for the gradient through rounding, for a quantizer that has none of its own."""

    identity: ClassVar[bool] = False

    def __call__(self, grad: Tensor, value: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
        """The gradient at `value`, from that at `quantized`, its dequantized form.

        `scale` is of a shape that multiplies `value`: codes are about `value / scale`.
        """
        raise NotImplementedError


class GradientQuantizer(LayerPart):
    """What happens, in training, to the gradient of a layer's output before the products of its backward."""

    def forward(self, grad: Tensor) -> Tensor:
        """The gradient of the output, fp32, batch first, as the products are to see it."""
        raise NotImplementedError


WEIGHTS: Registry[type[WeightQuantizer]] = Registry("weight quantizer")
ACTIVATIONS: Registry[type[ActivationQuantizer]] = Registry("activation quantizer")
TRANSFORMS: Registry[type[Transform]] = Registry("transform")
SPARSIFIERS: Registry[type[Sparsifier]] = Registry("sparsifier")
ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
GRADIENTS: Registry[type[GradientQuantizer]] = Registry("gradient quantizer")
