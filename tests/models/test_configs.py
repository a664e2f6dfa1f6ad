"""Every conf/model/*.yaml, of images or of text: builds, trains one batch, and names what it has."""

from __future__ import annotations

import fnmatch
import functools
import inspect
import itertools
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from bitexp.common.signatures import keywords
from bitexp.deploy.packed_checks import Limited
from bitexp.models import MODELS
from bitexp.track.folder import ADDED
from tests.support.marks import others_slow

CONF = Path(__file__).parents[2] / "conf"
Facts = MappingProxyType[str, Any]


def images(*shape: int) -> Facts:
    return MappingProxyType({"shape": shape, "classes": 10})


DIGITS, GREY, COLOUR = images(1, 8, 8), images(1, 28, 28), images(3, 32, 32)
TEXT = MappingProxyType({"vocabulary": 256, "context": 128})
PIECES = MappingProxyType({"vocabulary": 8000, "context": 512})
TOO_SMALL = ("convnext_tiny", DIGITS)


@functools.cache
def load(name: str) -> MappingProxyType[str, Any]:
    """The keys of one YAML with what it inherits."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = OmegaConf.to_container(compose(overrides=[f"+model={name}"]).model)
    assert isinstance(config, dict)
    return MappingProxyType({str(key): value for key, value in config.items()})


def parameters(name: str) -> MappingProxyType[str, inspect.Parameter]:
    """Those of the model's constructor, without Hydra: every worker asks for all of them as it collects."""
    config = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    if "name" not in config:
        return parameters(config.defaults[0])
    return MappingProxyType(keywords(MODELS.get(config.name)))


NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
TEXT_MODELS = [name for name in NAMES if "vocabulary" in parameters(name)]
IMAGE_MODELS = [name for name in NAMES if name not in TEXT_MODELS]
DATA = {**dict.fromkeys(IMAGE_MODELS, COLOUR), **dict.fromkeys(TEXT_MODELS, TEXT)}


def build(name: str, facts: Facts) -> nn.Module:
    config = dict(load(name))
    config.pop("full_precision")
    return MODELS.get(config.pop("name"))(**facts, **config)


SKELETONS: dict[tuple[str, str], nn.Module] = {}


def skeleton(name: str, facts: Facts) -> nn.Module:
    """The model without its numbers: shapes and names are checked, nothing is computed."""
    if (key := (name, str(facts))) not in SKELETONS:
        with torch.device("meta"), Limited(100_000, numbers=True):  # RegNets read the widths they compute
            SKELETONS[key] = build(name, facts)
    return SKELETONS[key]


def batch(facts: Facts, device: str) -> torch.Tensor:
    """Two inputs."""
    if "shape" in facts:
        return torch.randn(2, *facts["shape"], device=device)
    return torch.randint(facts["vocabulary"], (2, 9), device=device)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_a_keyword_without_a_default(name: str) -> None:
    """Those that came later have one, the value that means as before: older files do not say them."""
    assert set(load(name)) - {"name", "full_precision"} == set(parameters(name)) - set(DATA[name])
    for key, parameter in parameters(name).items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is ADDED.get(f"model.{key}", parameter.empty)
        assert parameter.annotation is not parameter.empty


EVERYWHERE = [
    *itertools.product(IMAGE_MODELS, (DIGITS, COLOUR)),
    *itertools.product(TEXT_MODELS, (TEXT, PIECES)),
]


@pytest.mark.parametrize(("name", "facts"), others_slow(EVERYWHERE, EVERYWHERE[::3]), ids=str)
def test_one_batch_gives_a_gradient_to_every_parameter(name: str, facts: Facts) -> None:
    torch.manual_seed(0)
    if (name, facts) == TOO_SMALL:
        with pytest.raises(ValueError, match="does not take 8x8 images"):
            build(name, facts)
        return
    model = skeleton(name, facts)
    device = "meta"
    if sum(p.numel() for p in model.parameters()) < 500_000:
        model, device = build(name, facts), "cpu"
    out = model(batch(facts, device))
    assert out.shape == ((2, 10) if "classes" in facts else (2, 9, facts["vocabulary"]))
    out.logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert device == "meta" or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_full_precision_names_what_is_there_and_leaves_a_body(name: str) -> None:
    patterns = load(name)["full_precision"]
    model = skeleton(name, DATA[name])
    names = {*dict(model.named_modules()), *dict(model.named_parameters())}
    for pattern in patterns:
        assert fnmatch.filter(names, pattern), pattern
    kept = [
        p.numel()
        for key, p in model.named_parameters()
        if any(fnmatch.fnmatchcase(key, pattern + end) for pattern in patterns for end in ("", ".*"))
    ]
    assert sum(kept) < 0.35 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_prenorm_names_a_norm_that_feeds_that_linear_and_nothing_else(name: str) -> None:
    model = skeleton(name, DATA[name])
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
    model(batch(DATA[name], "meta"))
    for norm, linear in declared:
        assert taken[id(linear)] is given[id(norm)]


@pytest.mark.parametrize(
    ("name", "facts", "count"),
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
        ("decoder", TEXT, 221_760),
        ("reloaded_32", PIECES, 6_033_696),
        ("reloaded_64", PIECES, 12_100_160),
        ("reloaded_128", PIECES, 24_331_392),
        ("reloaded_256", PIECES, 49_187_072),
    ],
)
def test_parameter_counts(name: str, facts: Facts, count: int) -> None:
    assert sum(p.numel() for p in skeleton(name, facts).parameters()) == count
