"""Weights of torchvision's classification models: published ones by their name, or a state dict in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.spelling import nearest
from bitexp.deploy.sources.base import SOURCES, Source, Which, check_same, shapes_of, sound, told
from bitexp.deploy.sources.names import vit_of_torchvision
from bitexp.deploy.sources.tensor_files import header_of, read_state_dict
from bitexp.kernels import Kernel
from bitexp.models import MODELS
from bitexp.models.torchvision_models import torchvision_builders

PREFIX = "torchvision:"
SUFFIXES = (".pth", ".pt", ".safetensors")


class StateDict(Source):
    """What both forms share: `arch` is the name of the architecture, or None where the text has none."""

    arch: str | None = None

    @property
    def files(self) -> Sequence[Path]:
        return [self.path]

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The tensors as they are in the file."""
        with told(self.text):
            return read_state_dict(self.path)

    @cached_property
    def arguments(self) -> dict[str, Any] | None:
        """The arguments of our model `torchvision` that has these tensors."""
        if self.arch is None:
            return None
        with told(self.text):
            return arguments_of(self.arch, shapes_of(self.state))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": self.text,
            "identity": self.identity,
            "model": None if self.arch is None else "torchvision",
            "model_arguments": self.arguments,
            "quantizer": None if self.arch is None else {"name": "full"},
        }

    def weights(self, which: Which = "best", model: str | None = None) -> dict[str, Tensor]:
        with told(self.text):
            if self.arch is not None:
                check_same(shapes_of(self.blank().state_dict()), shapes_of(self.state))
            state = sound(self.state)
            return vit_of_torchvision(state) if model == "vit" else state

    def blank(self) -> nn.Module:
        """The model without memory."""
        if self.arguments is None:
            raise UserError(f"{self.text} does not say which model it is of: write {PREFIX}ARCH:{self.text}")
        with torch.device("meta"):
            return MODELS.get("torchvision")(**self.arguments)

    def model(self, which: Which = "best", kernel: Kernel | str = "auto") -> nn.Module:
        model = self.blank()
        weights = self.weights(which)
        with told(self.text):
            model.load_state_dict(weights, assign=True)
        return model.requires_grad_(True).eval()


@SOURCES.register("torchvision")
class Torchvision(StateDict):
    """`torchvision:ARCH:WEIGHTS`: the word of published weights (or DEFAULT), or the path of a state dict."""

    kind = "torchvision"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        arch, _, word = text.removeprefix(PREFIX).partition(":")
        models = torchvision_builders()
        known = models.list_models(module=models)
        if arch not in known:
            raise UserError(f"{text}: torchvision has no model '{arch}'.{nearest(arch, known)}")
        self.arch = arch
        if not word:
            raise UserError(f"{text} names no weights: {PREFIX}{arch}:DEFAULT, or the path of a state dict")
        self.path = Path(word).expanduser()
        if self.path.suffix not in SUFFIXES:
            self.path = published(text, models.get_model_weights(arch), word)
        if not self.path.is_file():
            raise UserError(f"{text}: there is no file {self.path}")

    @classmethod
    def recognizes(cls, text: str) -> bool:
        return text.startswith(PREFIX)


@SOURCES.register("state dict")
class BareStateDict(StateDict):
    """A file with the state dict of a network whose names are ours: torchvision's, for `model=resnet18`."""

    kind = "state dict"

    @classmethod
    def recognizes(cls, text: str) -> bool:
        path = Path(text).expanduser()
        if path.suffix not in SUFFIXES or not path.is_file():
            return False
        return path.suffix != ".safetensors" or "bitexp" not in header_of(path)[0]


def published(text: str, known: Any, word: str) -> Path:
    """The file of published weights, fetched where it is not in torch's cache.

    Raises:
        UserError: no such weights, or they cannot be fetched.
    """
    names = [*known.__members__, "DEFAULT"]
    if word not in names:
        raise UserError(
            f"{text}: there are no weights '{word}'.{nearest(word, names)} Known: {', '.join(names)}"
        )
    url = known[word].url if word != "DEFAULT" else known.DEFAULT.url
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            begin = name.rpartition("-")[2].partition(".")[0]  # of its SHA-256
            torch.hub.download_url_to_file(url, str(path), begin, progress=False)
        except Exception as error:  # whatever the network and its libraries raise
            raise UserError(
                f"{text}: {url} cannot be fetched ({error}); put that file at {path}, or name a file: "
                f"{text.rpartition(':')[0]}:FILE.pth"
            ) from None
    return path


def arguments_of(arch: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments with which our model `torchvision` has tensors of these shapes."""
    last = next((shape for shape in list(shapes.values())[::-1] if len(shape) == 1), None)
    first = next((shape for shape in shapes.values() if len(shape) == 4), None)
    if last is None or first is None:
        raise ValueError(f"its tensors are not those of {arch}")
    side = 299 if arch == "inception_v3" else 224
    if arch.startswith("vit_") and "encoder.pos_embedding" in shapes:
        tokens = shapes["encoder.pos_embedding"][1] - 1
        side = math.isqrt(tokens) * int(arch.rpartition("_")[2])
    small = "resne" in arch and shapes.get("conv1.weight", ())[2:] == (3, 3)
    stem = "small" if small else "imagenet"
    return {"shape": (first[1], side, side), "classes": last[0], "arch": arch, "stem": stem}
