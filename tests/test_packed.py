"""The packed file: the same bits after a round trip, and clean errors for anything that is none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bitexp.errors import UserError
from bitexp.kernels import KERNELS
from bitexp.kernels.frozen import freeze
from bitexp.models import MODELS
from bitexp.packed import Description, checksum, load_packed, save_packed, sizes
from bitexp.quant import QUANTIZERS, Quantizer
from bitexp.quant.convert import quantize

Make = Callable[..., Quantizer]

REFERENCE = KERNELS.get("reference")
SHAPE = (1, 8, 8)
MODEL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [24, 17], "activation": "relu", "dropout": 0.1},
    "cnn": {"widths": [4, 6], "pool": [2, 2], "kernel": 3, "dropout": 0.0},
    "vit": {
        "patch": 4,
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "mlp_ratio": 2.0,
        "dropout": 0.0,
        "pool": "cls",
    },
}
KEPT = {"mlp": ["head"], "cnn": ["head"], "vit": ["patch_embed", "pos_embed", "head"]}
ARGUMENTS = {
    "norm": "layer",
    "activations": "int8",
    "act_qmax": 127,
    "granularity": "tensor",
    "group_size": None,
    "bias": "plain",
}


def description(model: str = "mlp", quantizer: str = "ternary_mean", **changes: Any) -> Description:
    """A small model on 8 x 8 images; `changes` are those of the quantizer's arguments."""
    arguments = {**ARGUMENTS, **changes}
    names = QUANTIZERS.get(quantizer).__init__.__kwdefaults__ or {}
    if quantizer in ("full", "full_norm"):
        arguments = {"norm": "layer"} if quantizer == "full_norm" else {}
    assert not names
    return Description(
        model=model,
        model_arguments={"shape": SHAPE, "classes": 5, **MODEL_ARGUMENTS[model]},
        quantizer=quantizer,
        quantizer_arguments=arguments,
        include=["*"],
        exclude=KEPT[model],
        preprocessing={"mean": [0.5], "std": [0.25]},
    )
