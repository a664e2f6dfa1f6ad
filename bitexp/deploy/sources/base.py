"""What every source of weights is, and how one is found by its text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError, first_line, is_of_the_machine
from bitexp.common.registry import Registry
from bitexp.data.hashes import content_hashes
from bitexp.deploy.packed_checks import all_finite
from bitexp.kernels import Kernel

Which = Literal["best", "last"]
"""Of a run: the weights that were tested (the best validation's where one was monitored), or the last."""

SOURCES: Registry[type[Source]] = Registry("source")
"""The forms of sources by their kind."""

FORMS = (
    "the folder of a finished run (outputs/EXPERIMENT/ID), a packed file (.safetensors), a folder of "
    "transformers (config.json and *.safetensors), torchvision:ARCH:WEIGHTS, or a state dict of torchvision "
    "(.pth, .safetensors)"
)


class Source:
    """A model with its weights, somewhere. Subclasses say how it is recognized and read.

    To make one reads at most headers. Everything raises `UserError` for what is missing, damaged or of
    another form, with the text in the message.
    """

    kind: ClassVar[str]
    """What it is, for people and records."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.path = Path(text).expanduser()

    @classmethod
    def recognizes(cls, text: str) -> bool:
        """Whether a text names a source of this form; what is wrong with it comes later."""
        raise NotImplementedError

    @property
    def files(self) -> Sequence[Path]:
        """The files whose content makes this source what it is, all in one folder or below it."""
        raise NotImplementedError

    @cached_property
    def identity(self) -> str:
        """What it is wherever it lies: a hash of the contents of its files; of a run its id."""
        root = self.files[0].parent
        names = [str(path.relative_to(root)) for path in self.files]
        hashes = content_hashes(root, names, "weight files")
        return hashlib.blake2b("/".join(sorted(hashes)).encode(), digest_size=16).hexdigest()

    def describe(self) -> dict[str, Any]:
        """`kind`, `path`, `identity`, `model` and `model_arguments` (None where unknown), `quantizer`."""
        raise NotImplementedError

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """How the data were prepared that it was trained on, as far as it is known."""
        return {}

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer of its vocabulary as text for `load_tokenizer`, where it is known."""
        return None

    def weights(self, which: Which = "best", model: str | None = None) -> dict[str, Tensor]:
        """Its weights in fp32 by their names in a model of ours, before that is quantized.

        Latents where there are some, else what codes stand for. Values are finite.

        Args:
            which: where a source has several. model: the registered model that they are for; None: its own.
        """
        raise NotImplementedError

    def learned(self, which: Which = "best") -> Mapping[str, Mapping[str, Tensor]]:
        """What the quantizer's parts have learned, by layer: the state of `parts`, and nothing elsewhere."""
        return {}

    def options(self) -> Mapping[str, Any]:
        """`LayerOptions` of its quantized layers by name, where it has latents."""
        return {}

    def model(self, which: Which = "best", kernel: Kernel | str = "auto") -> nn.Module:
        """The model as it computes, on the CPU in eval mode: quantized where it is."""
        raise NotImplementedError


def find_source(text: str, key: str = "start.from") -> Source:
    """The source that a text names.

    Args:
        key: of the config, for messages.

    Raises:
        UserError: there is none, or none of a known form.
    """
    if text.strip() in ("", "???"):
        raise UserError(f"{key} has no value; it may name {FORMS}")
    try:
        for name in SOURCES.names():
            kind: type[Source] = SOURCES.get(name)
            if kind.recognizes(text):
                return kind(text)
        there = Path(text).expanduser().exists()
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero
        raise UserError(f"{key}={text!r} cannot be looked up: {error}") from error
    what = "is none of the known forms" if there else "names nothing that is there"
    raise UserError(f"{key}={text} {what}; it may name {FORMS}")


@contextmanager
def told(text: str) -> Iterator[None]:
    """Whatever a damaged or hostile source makes its readers raise becomes a sentence that names it."""
    try:
        yield
    except UserError as error:
        if text in str(error):
            raise
        raise UserError(f"{text}: {error}") from error
    except Exception as error:
        if is_of_the_machine(error):
            raise
        raise UserError(f"{text} cannot be used: {first_line(error)}") from error


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_same(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `ValueError` where tensors are not those of the model that they are said to be of."""
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"it has no tensor {name}")
        if found[name] != shape:
            raise ValueError(f"{name} has the shape {list(found[name])}, and its model {list(shape)}")
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(f"its model has no place for {', '.join(unknown[:5])}")


def sound(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of tensors, floats in fp32. Raises `ValueError` for other values, or none that are finite."""
    copies = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_complex():
            raise ValueError(f"{name} is no plain tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} has the shape {list(tensor.shape)} and no such memory")
        copy = tensor.detach().to(
            "cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True
        )
        copies[name] = finite(name, copy.contiguous())
    return copies


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself. Raises `ValueError` where it holds floats that are no finite numbers."""
    if not all_finite(tensor):
        raise ValueError(f"{name} holds values that are no finite numbers")
    return tensor
