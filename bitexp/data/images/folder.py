"""A user's own images, in a folder per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bitexp.common.checks import at_least, check_share, held_out_count
from bitexp.common.errors import UserError
from bitexp.data.base import PARTS, Part
from bitexp.data.images.base import ImageData
from bitexp.data.images.on_disk import ImagesOnDisk
from bitexp.data.images.split import stratified
from bitexp.data.registry import DATA

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TEST_SEED = 0  # of a test part cut from the images: no other seed moves an image into it


@DATA.register("image_folder")
class ImageFolder(ImageData):
    """Images under `data_dir`: `train/CLASS/*.png`, maybe `val/` and `test/`; or `CLASS/*.png`.

    Args:
        val_size: held out of the training images where there is no folder `val`.
        test_size: held out of all images, always the same ones, where there is no folder `test`.
        size: side of the square that every image is brought to, in pixels.
        channels: 3: colour, 1: grey.
        limit: so many training images, stratified; `split_seed` says which. None: all.

    The other arguments are those of `ImageData`. Mean and deviation come from about a thousand
    training images.
    """

    title = "image folder"
    statistics_limit = 1024

    def __init__(
        self,
        *,
        test_size: int | float,
        size: int,
        channels: Literal[1, 3],
        **options: Any,
    ) -> None:
        at_least("size", size, 1)
        check_share("test_size", test_size)
        self.shape = (channels, size, size)
        self.test_size = test_size
        super().__init__(**options)

    def locate(self) -> str:
        return str(self.root)

    @cached_property
    def root(self) -> Path:
        """The folder with the images. Raises `UserError` where there are none."""
        if self.download:
            raise UserError("data=image_folder has nothing to download: set data.download=false")
        if self.data_dir is None:
            raise UserError(
                "data=image_folder needs the folder of your images: data.data_dir=FOLDER, "
                f"{_LAYOUT}. Without images of your own: data=digits is embedded."
            )
        root = Path(self.data_dir).expanduser().absolute()
        base = root / "train" if _folders(root / "train") else root
        classes = _classes(base)
        if not classes:
            raise UserError(
                f"No images in folders of {base}: looked for CLASS/*{{{','.join(ENDINGS)}}}. "
                f"data.data_dir is {_LAYOUT}. Without images of your own: data=digits is embedded."
            )
        if len(classes) == 1:
            raise UserError(
                f"All images of {base} are in one folder, '{classes[0].name}', and a single class leaves "
                f"nothing to tell apart. data.data_dir is {_LAYOUT}, with a folder for each class"
            )
        return root

    @property
    def class_names(self) -> list[str]:
        return [folder.name for folder in _classes(self._base("train") or self.root)]

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The number of folders with images."""
        return len(self.class_names)

    def remarks(self) -> str:
        """Which files and folders are left out."""
        bases = filter(None, map(self._base, PARTS))
        folders = [folder for base in bases for folder in _folders(base)]
        empty = [folder.name for folder in folders if not any(True for _ in _images(folder))]
        hidden = sum(path.name[0] == "." for folder in folders for path in _pictures(folder))
        others = Counter(path.suffix.lower() for folder in folders for path in _others(folder))
        listed = ", ".join(
            f"{count:,} {ending or 'without ending'}" for ending, count in sorted(others.items())
        )
        remarks = {
            "files left out": listed,
            "hidden files left out": f"{hidden:,}" if hidden else "",
            "folders without images left out": ", ".join(dict.fromkeys(empty)),
        }
        return "; ".join(f"{what}: {which}" for what, which in remarks.items() if which)

    def read(self, part: Part) -> ImagesOnDisk | None:
        base = self._base(part)
        if part == "val":
            return None if base is None else self._list(base)
        if part == "test" and base is not None:
            return self._list(base)
        if part == "train" and self._base("test") is not None:
            return self._everything
        everything = self._everything
        held = held_out_count(self.test_size, len(everything.labels), "data.test_size")
        if held == 0:
            raise UserError(f"{self.root} has no folder 'test': set data.test_size above 0")
        training, test = stratified(everything.labels, held, TEST_SEED)
        kept = training if part == "train" else test
        return replace(everything, names=everything.names[kept.numpy()], labels=everything.labels[kept])

    def limited(self, training: Tensor) -> Tensor:
        # the images lie class by class: the first ones would be of one class
        left_out = max(0, len(training) - (self.limit or len(training)))
        return training[stratified(self._train.labels[training], left_out, self.split_seed)[0]]

    @cached_property
    def _everything(self) -> ImagesOnDisk:
        return self._list(self._base("train") or self.root)

    def _base(self, part: Part) -> Path | None:
        """Where the class folders of a part are; None for a part cut from the training images."""
        if not _folders(self.root / "train"):
            return self.root if part == "train" else None
        return self.root / part if _folders(self.root / part) else None

    def _list(self, base: Path) -> ImagesOnDisk:
        classes = self.class_names
        names: list[str] = []
        labels: list[int] = []
        for folder in _classes(base):
            if folder.name not in classes:
                raise UserError(
                    f"{folder} is a class that the training images do not have; "
                    f"they have {', '.join(classes)}"
                )
            members = sorted(path.relative_to(self.root).as_posix() for path in _images(folder))
            names += members
            labels += [classes.index(folder.name)] * len(members)
        if not names:
            raise UserError(f"{base} holds no images")
        return ImagesOnDisk(self.root, np.array(names), torch.tensor(labels), *self.shape[:2])


_LAYOUT = "holding train/CLASS/*.png, with val/ and test/ likewise or not, or CLASS/*.png"


def _folders(root: Path) -> list[Path]:
    """The visible folders in a folder, sorted; none where there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _classes(root: Path) -> list[Path]:
    """The folders in a folder that hold images, at any depth."""
    return [folder for folder in _folders(root) if any(True for _ in _images(folder))]


def _images(folder: Path) -> Iterator[Path]:
    """Visible images: macOS puts a file `._NAME` beside each on a foreign disk, and it is none."""
    return (path for path in _pictures(folder) if path.name[0] != ".")


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)


def _others(folder: Path) -> Iterator[Path]:
    """Visible files that are not taken for images."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() not in ENDINGS)
    return (path for path in paths if path.name[0] != "." and path.is_file())
