"""RegNets of any size, by the formula of their widths (arXiv 2003.13678, section 3.3)."""

from __future__ import annotations

from typing import Any

from torch import nn

from bitexp.common import checks
from bitexp.common.torchvision import import_torchvision
from bitexp.models.registry import MODELS
from bitexp.models.torchvision_models import check_takes, drop, fit_channels, taps_of


@MODELS.register("regnet")
def regnet(
    *,
    shape: tuple[int, int, int],
    classes: int,
    depth: int,
    initial_width: int,
    slope: float,
    multiplier: float,
    group_width: int,
    stochastic_depth: float = 0,
) -> nn.Module:
    """Images `[B, C, H, W]` -> logits `[B, classes]`: torchvision's RegNetX of a depth and a line of widths.

    Block j would have the width `initial_width + slope * j`; that is rounded to a power of `multiplier` times
    `initial_width`, and to a multiple of 8 and of the groups. Blocks of one width are a stage.

    Raises:
        ValueError: numbers that make no network, or an image that it does not take.
    """
    checks.check_image(shape, classes)
    checks.check_sizes(depth=depth, initial_width=initial_width, group_width=group_width)
    module: Any = import_torchvision("torchvision.models.regnet")
    model: Any = module.RegNet(
        module.BlockParams.from_init_params(
            depth=depth, w_0=initial_width, w_a=slope, w_m=multiplier, group_width=group_width
        ),
        num_classes=classes,
        activation=nn.ReLU,
    )
    drop(model, "regnet", stochastic_depth)
    fit_channels(model, shape[0])
    check_takes(model, "regnet", shape)
    model.taps = taps_of("regnet")
    return model
