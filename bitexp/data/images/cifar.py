"""CIFAR-10 and CIFAR-100, from their pickled batches; a hostile file runs nothing."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from bitexp.common.errors import UserError, is_of_the_machine
from bitexp.common.torchvision import import_torchvision
from bitexp.data.base import Part
from bitexp.data.images.batches import ImagesInMemory, checked_images
from bitexp.data.images.published import PublishedDataset
from bitexp.data.registry import DATA

_RECONSTRUCT = np.empty(0).__reduce__()[0]


class ArrayUnpickler(pickle.Unpickler):
    """Knows arrays, and of everything else only what needs no import."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _RECONSTRUCT
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_batch(path: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR file. Raises `UserError` naming a damaged or hostile file."""
    try:
        with path.open("rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()  # written by Python 2
    except Exception as error:  # a damaged pickle may raise nearly anything
        if is_of_the_machine(error):
            raise
        raise UserError(f"{path} is not a CIFAR file ({error}). Replace the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR file: it holds no dictionary. Replace the file")
    return content


@DATA.register("cifar10")
class Cifar10(PublishedDataset):
    """50,000 + 10,000 colour 32 x 32 photographs."""

    title = "CIFAR-10"
    hub = "uoft-cs/cifar10"
    shape = (3, 32, 32)
    classes = 10
    folders = ("cifar-10-batches-py",)
    files: ClassVar[dict[Part, Sequence[str]]] = {
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    }
    label_key, names_file, names_key = "labels", "batches.meta", "label_names"

    @property
    def class_names(self) -> list[str]:
        names = read_batch(self.folder / self.names_file).get(self.names_key, [])
        if len(names) != self.classes:
            raise UserError(
                f"{self.folder / self.names_file} does not name {self.classes} classes. Replace the file"
            )
        return [str(name) for name in names]

    @classmethod
    def parse(cls, part: Part, files: Sequence[Path]) -> ImagesInMemory:
        batches = [cls._parse_file(path) for path in files]
        return ImagesInMemory(
            torch.cat([batch.images for batch in batches]),
            torch.cat([batch.labels for batch in batches]),
        )

    @classmethod
    def _parse_file(cls, path: Path) -> ImagesInMemory:
        batch = read_batch(path)
        data, labels = batch.get("data"), batch.get(cls.label_key)
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2):
            raise UserError(f"{path} holds no rows of bytes under 'data'. Replace the file")
        if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
            raise UserError(f"{path} holds no list of '{cls.label_key}'. Replace the file")
        if data.shape[1] != 3 * 32 * 32:
            raise UserError(f"{path} holds rows of {data.shape[1]} bytes, not 3,072. Replace the file")
        images = torch.from_numpy(np.ascontiguousarray(data)).reshape(-1, *cls.shape)
        return checked_images(images, torch.tensor(labels), cls.shape, cls.classes, path)

    @classmethod
    def fetch(cls, root: Path) -> None:
        datasets = import_torchvision("torchvision.datasets")
        # not the class itself, which would unpickle what it fetched
        kind = datasets.CIFAR100 if cls.classes == 100 else datasets.CIFAR10
        fetch = datasets.utils.download_and_extract_archive
        fetch(kind.url, str(root), filename=kind.filename, md5=kind.tgz_md5)


@DATA.register("cifar100")
class Cifar100(Cifar10):
    """50,000 + 10,000 colour 32 x 32 photographs, with their 100 fine labels."""

    title = "CIFAR-100"
    hub = "uoft-cs/cifar100"
    classes = 100
    folders = ("cifar-100-python",)
    files: ClassVar[dict[Part, Sequence[str]]] = {"train": ("train",), "test": ("test",)}
    label_key, names_file, names_key = "fine_labels", "meta", "fine_label_names"
