"""Every conf/model/*.yaml of an image model: builds, trains one batch, and names what it has."""

from __future__ import annotations

import fnmatch
import functools
import inspect
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from bitexp.models import MODELS

CONF = Path(__file__).parents[2] / "conf"
DIGITS, GREY, COLOUR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
Shape = tuple[int, int, int]
TOO_SMALL = {("convnext_tiny", DIGITS)}


@functools.cache
def load(name: str) -> MappingProxyType[str, Any]:
    """The keys of one YAML with what it inherits."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = OmegaConf.to_container(compose(overrides=[f"+model={name}"]).model)
    assert isinstance(config, dict)
    return MappingProxyType({str(key): value for key, value in config.items()})


def takes_images(name: str) -> bool:
    return "classes" in inspect.signature(MODELS.get(load(name)["name"])).parameters


NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
IMAGE_MODELS = [name for name in NAMES if takes_images(name)]


def build(name: str, shape: Shape) -> nn.Module:
    config = dict(load(name))
    config.pop("full_precision")
    return MODELS.get(config.pop("name"))(shape=shape, classes=10, **config)


@functools.cache
def skeleton(name: str, shape: Shape) -> nn.Module:
    """The model without its numbers: shapes and names are checked, nothing is computed."""
    with torch.device("meta"):
        return build(name, shape)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_key_is_a_keyword_without_a_default(name: str) -> None:
    config = load(name)
    parameters = inspect.signature(MODELS.get(config["name"])).parameters
    assert set(config) - {"name", "full_precision"} == set(parameters) - {"shape", "classes"}
    for parameter in parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is parameter.empty
        assert parameter.annotation is not parameter.empty


@pytest.mark.parametrize("shape", [DIGITS, COLOUR], ids=str)
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_one_batch_gives_a_gradient_to_every_parameter(name: str, shape: Shape) -> None:
    torch.manual_seed(0)
    if (name, shape) in TOO_SMALL:
        with pytest.raises(ValueError, match=f"does not take {shape[1]}x{shape[2]} images"):
            build(name, shape)
        return
    model = skeleton(name, shape)
    device = "meta"
    if sum(p.numel() for p in model.parameters()) < 500_000:
        model, device = build(name, shape), "cpu"
    out = model(torch.randn(2, *shape, device=device))
    assert out.shape == (2, 10)
    out.logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert device == "meta" or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_full_precision_names_what_is_there_and_leaves_a_body(name: str) -> None:
    patterns = load(name)["full_precision"]
    model = skeleton(name, COLOUR)
    names = {*dict(model.named_modules()), *dict(model.named_parameters())}
    for pattern in patterns:
        assert fnmatch.filter(names, pattern), pattern
    kept = [
        p.numel()
        for key, p in model.named_parameters()
        if any(fnmatch.fnmatchcase(key, pattern + end) for pattern in patterns for end in ("", ".*"))
    ]
    assert sum(kept) < 0.35 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_prenorm_names_a_norm_that_feeds_that_linear_and_nothing_else(name: str) -> None:
    model = skeleton(name, COLOUR)
    declared = [
        (module.get_submodule(norm), module.get_submodule(linear))
        for module in model.modules()
        for linear, norm in getattr(module, "prenorm", {}).items()
    ]
    given: dict[int, Any] = {}
    taken: dict[int, Any] = {}
    for norm, linear in declared:
        norm.register_forward_hook(lambda m, _, out: given.update({id(m): out}))
        linear.register_forward_pre_hook(lambda m, args: taken.update({id(m): args[0]}))
    model(torch.randn(2, *COLOUR, device="meta"))
    for norm, linear in declared:
        assert taken[id(linear)] is given[id(norm)]


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("vit", DIGITS, 136_010),
        ("vit_mini", COLOUR, 1_205_642),
        ("vit_tiny", COLOUR, 5_362_378),
        ("vit_small", COLOUR, 21_341_578),
        ("vit_48m", COLOUR, 47_937_610),
        ("cnn", DIGITS, 56_554),
        ("cnn_large", GREY, 241_898),
        ("cnn_100k", GREY, 94_186),
        ("cnn_2m", COLOUR, 2_185_194),
        ("mlp", DIGITS, 26_122),
        ("resnet18", COLOUR, 11_173_962),
    ],
)
def test_parameter_counts(name: str, shape: Shape, parameters: int) -> None:
    assert sum(p.numel() for p in skeleton(name, shape).parameters()) == parameters
