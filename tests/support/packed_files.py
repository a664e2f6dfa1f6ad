"""Packed files of small models, good ones and others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.deploy.description import Description
from bitexp.deploy.frozen import freeze
from bitexp.deploy.packed_file import checksum, load_packed, save_packed
from bitexp.kernels import KERNELS
from bitexp.models import MODELS
from bitexp.quant import quantize
from bitexp.quant.presets import as_quantizer
from tests.support.quantizers import make_quantizer

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


def describe(model: str = "mlp", quantizer: str = "ternary_mean", **changes: Any) -> Description:
    """A small model on 8 x 8 images; `changes` are those of the quantizer."""
    return Description(
        model=model,
        model_arguments={"shape": SHAPE, "classes": 5, **MODEL_ARGUMENTS.get(model, {})},
        quantizer=make_quantizer(quantizer, **changes).to_json(),
        include=["*"],
        exclude=KEPT.get(model, []),
        preprocessing={"mean": [0.5], "std": [0.25]},
    )


def trained(description: Description) -> tuple[nn.Module, list[str]]:
    """A model whose every parameter and buffer has moved, in eval mode, and its body."""
    torch.manual_seed(0)
    model = MODELS.get(description.model)(**description.model_arguments)
    body = quantize(model, as_quantizer(description.quantizer), description.include, description.exclude).body
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model(torch.randn(16, *SHAPE))
    return model.eval(), body


def write(path: Path, description: Description, layout: str = "auto") -> tuple[nn.Module, Tensor, Tensor]:
    """Freezes and saves a model; returns the trained one, an input, and what it answers."""
    model, body = trained(description)
    x = torch.randn(9, *SHAPE)
    expected = model(x).detach()
    frozen = copy.deepcopy(model)
    freeze(frozen, layout, REFERENCE)
    save_packed(path, frozen, description, body)
    return model, x, expected


def assert_refused(path: Path, match: str = ".") -> None:
    """Loading fails with words for the user, the file's name among them."""
    with pytest.raises(UserError, match=match) as refused:
        load_packed(path, REFERENCE)
    assert str(path) in str(refused.value)


def rewrite(
    path: Path,
    content: bytes,
    change: Callable[[dict[str, Any], dict[str, Tensor]], None],
) -> None:
    """A file as somebody else might make it: changed, and with the checksum that fits."""
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["bitexp"])
        del header["crc32"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    header["crc32"] = checksum(header, sorted(tensors.items()))
    path.write_bytes(save(tensors, {"bitexp": json.dumps(header)}))
