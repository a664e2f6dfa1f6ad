"""Any classification model of torchvision by its name there, from random weights.

Channels, classes and image size are fitted to the data; parameter names stay torchvision's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call

from bitexp.common import checks
from bitexp.common.errors import first_line
from bitexp.common.torchvision import import_torchvision
from bitexp.models.registry import MODELS
from bitexp.models.stochastic_depth import check_rate, drop_branches
from bitexp.models.taps import Tap, Taps
from bitexp.models.ties import Ties

EXAMPLE_SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 299)
"""image sizes to suggest where an architecture shrinks the given one to nothing"""


HIDDEN = {"resne": "layer*", "regnet": "trunk_output.*", "convnext": "features.*", "vit_": "encoder.layers.*"}
"""Where hidden states are in families of architectures, by what their names contain."""

SHORTCUTS = {"resne": ("conv1", "downsample.0"), "regnet": ("f.a.0", "proj.0")}
"""In such families: the first convolution of a block, and that of its shortcut, which sees the same input."""


@MODELS.register("torchvision")
def torchvision_model(
    *,
    shape: tuple[int, int, int],
    classes: int,
    arch: str,
    stem: Literal["imagenet", "small"],
    stochastic_depth: float = 0,
) -> nn.Module:
    """Images `[B, C, H, W]` -> logits `[B, classes]`, by `torchvision.models.<arch>`.

    `stochastic_depth` is how often a sample goes past the last residual branch in training, rising from 0.
    torchvision has it in some architectures, with rates of its own; here it is for ResNets and RegNets.

    `stem=small` is the usual change to a ResNet for images of about 32x32 (arXiv 1512.03385 section
    4.2): a 3x3 convolution of stride 1 and no pooling in place of 7x7, stride 2 and pooling.

    Raises:
        ValueError: an unknown architecture, or an image that it does not take.
    """
    checks.check_image(shape, classes)
    checks.check_choice("stem", stem, ("imagenet", "small"))
    models = torchvision_builders()
    checks.check_choice("arch", arch, models.list_models(module=models))
    if stem == "small" and "resne" not in arch:
        raise ValueError(f"stem=small is for resnet and resnext, not for arch={arch}; use stem=imagenet")
    model = models.get_model(arch, weights=None, num_classes=classes, **options(arch, shape))
    drop(model, arch, stochastic_depth)
    if stem == "small":
        model.conv1 = small_stem(model.conv1)
        model.maxpool = nn.Identity()
    fit_channels(model, shape[0])
    check_takes(model, arch, shape)
    model.taps, model.ties = taps_of(arch), ties_of(arch, model)
    return model


def drop(model: nn.Module, arch: str, rate: float) -> None:
    """Gives a ResNet or RegNet stochastic depth.

    Raises:
        ValueError: a rate out of its range, or another architecture.
    """
    check_rate(rate)
    if not rate:
        return
    ends = {"BasicBlock": "bn2", "Bottleneck": "bn3", "ResBottleneckBlock": "f"}
    blocks = [module for module in model.modules() if type(module).__name__ in ends]
    if not blocks:
        raise ValueError(
            f"stochastic_depth={rate} is for resnet, resnext and regnet, not for arch={arch}; use 0"
        )
    drop_branches([block.get_submodule(ends[type(block).__name__]) for block in blocks], rate)


def taps_of(arch: str) -> Taps:
    """What can be seen inside of an architecture."""
    place = next((place for family, place in HIDDEN.items() if family in arch), None)
    return {} if place is None else {"hidden": Tap(place)}


def ties_of(arch: str, model: nn.Module) -> Ties:
    """Which layers of an architecture multiply the same input."""
    first, shortcut = next((pair for family, pair in SHORTCUTS.items() if family in arch), ("", ""))
    blocks = [
        name.removesuffix(f".{shortcut}") for name, _ in model.named_modules() if name.endswith(shortcut)
    ]
    return tuple((f"{block}.{first}", f"{block}.{shortcut}") for block in blocks) if shortcut else ()


def torchvision_builders() -> Any:
    """The module `torchvision.models`, imported when a model asks for it."""
    return import_torchvision("torchvision.models")


def options(arch: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What some builders must be told beside the number of classes.

    Raises:
        ValueError: an image size that the architecture cannot be built for.
    """
    _, height, width = shape
    if arch in ("googlenet", "inception_v3"):
        # A single output, and the initialization: left open, these builders warn about it.
        return {"aux_logits": False, "init_weights": True}
    if arch.startswith("vit_"):
        patch = int(arch.rpartition("_")[2])
        if height != width or height % patch:
            raise ValueError(
                f"arch={arch} takes square images of a multiple of {patch} pixels, not "
                f"{height}x{width}; resize the images or choose model=vit, whose patch size is free"
            )
        return {"image_size": height}
    if arch == "maxvit_t":
        if height % 224 or width % 224:
            raise ValueError(
                f"arch={arch} takes images of a multiple of 224 pixels, not {height}x{width}; "
                "resize the images or choose another arch"
            )
        return {"input_size": (height, width)}
    return {}


def small_stem(conv: nn.Conv2d) -> nn.Conv2d:
    """What stands in for a ResNet's first layer: 3x3 and stride 1, initialized alike."""
    new = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def fit_channels(model: nn.Module, channels: int) -> None:
    """Makes the first convolution take `channels`, repeating or dropping its random input filters.

    So the weights keep the distribution that the architecture chose for them.
    """
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    if conv.in_channels != channels:
        picked = torch.arange(channels, device=conv.weight.device) % conv.in_channels
        conv.weight = nn.Parameter(conv.weight.detach()[:, picked].clone())
        conv.in_channels = channels


def check_takes(model: nn.Module, arch: str, shape: tuple[int, int, int]) -> None:
    """Raises `ValueError` where the model's layers shrink the image to nothing."""
    channels, height, width = shape
    error = first_error(model, shape)
    if error:
        larger = next((s for s in EXAMPLE_SIZES if not first_error(model, (channels, s, s))), None)
        hint = f"enlarge the images, for example to {larger}x{larger}, or " if larger else ""
        raise ValueError(
            f"arch={arch} does not take {height}x{width} images; {hint}choose another arch "
            f"(torchvision: {error})"
        )


def first_error(model: nn.Module, shape: tuple[int, int, int]) -> str:
    """What one forward raises on the meta device, which checks shapes and computes nothing."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    model.eval()
    try:
        with torch.no_grad():
            functional_call(model, meta, (torch.empty(1, *shape, device="meta"),))
    except (RuntimeError, ValueError, AssertionError) as error:
        return first_line(error)
    finally:
        model.train()
    return ""
