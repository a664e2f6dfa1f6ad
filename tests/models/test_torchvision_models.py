"""The torchvision adapter: names and weights stay torchvision's; the rest is fitted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bitexp.models.torchvision_models import torchvision_model

RESNET: dict[str, Any] = {
    "shape": (3, 32, 32),
    "classes": 10,
    "arch": "resnet18",
    "stem": "imagenet",
}


def test_unadapted_model_is_torchvisions_own() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    ours = torchvision_model(**RESNET)
    torch.manual_seed(0)
    theirs = resnet18(weights=None, num_classes=10)
    assert_close(ours.state_dict(), theirs.state_dict())
    assert ours.training


def test_small_stem_keeps_the_size_of_the_image() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        large, small = (torchvision_model(**{**RESNET, "stem": s}) for s in ("imagenet", "small"))
        x = torch.randn(2, 3, 32, 32)
    sizes: list[torch.Size] = []
    for model in (large, small):
        model.get_submodule("layer1").register_forward_hook(lambda *a: sizes.append(a[2].shape))
        assert model(x).shape == (2, 10)
    assert sizes == [(2, 64, 8, 8), (2, 64, 32, 32)]
    assert list(large.state_dict()) == list(small.state_dict())


@pytest.mark.parametrize("channels", [1, 4])
def test_first_convolution_takes_the_channels_with_the_spread_of_its_init(channels: int) -> None:
    torch.manual_seed(0)
    model = torchvision_model(**{**RESNET, "shape": (channels, 32, 32)})
    conv = model.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.shape == (64, channels, 7, 7)
    assert conv.weight.is_contiguous()
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "arch",
    [
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "mnasnet0_5",
        "resnext50_32x4d",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "vgg11",
        "vit_b_32",
    ],
)
def test_families_give_one_output_of_the_right_size_in_training(arch: str) -> None:
    with torch.device("meta"):
        model = torchvision_model(**{**RESNET, "arch": arch, "shape": (1, 32, 32), "classes": 7})
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_regnet_that_computes_its_widths_with_tensors() -> None:
    model = torchvision_model(**{**RESNET, "arch": "regnet_y_400mf"})
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "resnet81"}, "arch=resnet81 is not known. Did you mean 'resnet18'"),
        ({"arch": "fcn_resnet50"}, "is not known.*alexnet, convnext_base"),
        ({"arch": "squeezenet1_1", "shape": (1, 8, 8)}, "not take 8x8 images; .* to 32x32"),
        ({"arch": "vit_b_16", "shape": (1, 28, 28)}, "multiple of 16 pixels, not 28x28; resize"),
        ({"arch": "vit_b_16", "shape": (1, 32, 48)}, "square images of .* not 32x48"),
        ({"arch": "maxvit_t"}, "multiple of 224 pixels, not 32x32"),
        ({"arch": "mobilenet_v2", "stem": "small"}, "not for arch=mobilenet_v2; use stem=imagenet"),
        ({"stem": "cifar"}, "stem=cifar is not known.* Choose one of imagenet, small"),
        ({"classes": 0}, "classes=0 must be at least 1"),
        ({"shape": (3, 32, 0)}, "choose a data set of images"),
    ],
)
def test_what_an_architecture_does_not_take_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_model(**{**RESNET, **change})


def test_image_size_is_probed_without_changing_the_model() -> None:
    model = torchvision_model(**RESNET)
    norm = model.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 0
    assert not any(t.is_meta for t in model.state_dict().values())
