"""What all tests share: one thread, examples without deadlines, quantizers as the YAML has them."""

from __future__ import annotations

import bitexp.compat  # noqa: F401  (before anything imports torchvision)

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import OmegaConf

from bitexp.quant import QUANTIZERS, Quantizer
from bitexp.settings import QuantizerChoice

CONF = Path(__file__).parents[1] / "conf"

torch.set_num_threads(1)
settings.register_profile("bitexp", deadline=None, max_examples=40)
settings.load_profile("bitexp")


@functools.cache
def choice(preset: str) -> QuantizerChoice:
    """What `quantizer=PRESET` composes to."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"quantizer={preset}"])
    return QuantizerChoice.model_validate(OmegaConf.to_container(config.quantizer, resolve=True))


@pytest.fixture(scope="session")
def make_quantizer() -> Callable[..., Quantizer]:
    """Builds the quantizer of conf/quantizer/PRESET.yaml, with some of its keys changed."""

    def make(preset: str, **changes: object) -> Quantizer:
        chosen = choice(preset)
        arguments = {"name": chosen.name, **chosen.arguments, **changes}
        return QUANTIZERS.get(arguments.pop("name"))(**arguments)

    return make
