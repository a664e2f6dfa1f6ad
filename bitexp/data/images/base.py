"""What all image data sets share: splits, statistics, loaders. A data set adds `read` and facts."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitexp.common.checks import at_least, check_share, held_out_count
from bitexp.common.errors import UserError
from bitexp.data.base import Data, Part
from bitexp.data.images.augment import Augment, Augmentation, augments, check_augment
from bitexp.data.images.batches import ImageBatches, Images, channel_statistics
from bitexp.data.images.split import stratified
from bitexp.data.loader import ResumableLoader


class ImageData(Data):
    """Images of one shape with one label each. Everything is read on first use and only then.

    Batches are float32 `[B, C, H, W]` and int64 `[B]`. Their order and augmentation follow from
    `seed` and the epoch; the validation part follows from `split_seed` alone.

    Args:
        batch_size: images per training step and process.
        eval_batch_size: upper limit of a batch in validation and test.
        val_size: held out of the training part, stratified: a fraction (float) or a count (int).
        split_seed: which images those are.
        limit: only that many training images, after the split: the first of published data sets, which come
            shuffled; None: all.
        data_dir: where the files are; None: the usual places.
        download: fetch missing files from the internet.
        workers: processes that prepare batches; 0: none, best for small images in memory.
        augment: random crop, flip and RandAugment of training images.
        normalize: subtract the mean and divide by the deviation of the training part, per channel.
        seed: of the run.

    An argument out of its range raises `ValueError`.
    """

    shape: tuple[int, int, int]  # [C, H, W]
    classes: int
    unit = "images"
    divide_by: ClassVar[int] = 255  # the value of a white pixel
    statistics_limit: ClassVar[int | None] = None  # images that mean and deviation are taken from

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        val_size: int | float,
        split_seed: int,
        limit: int | None,
        data_dir: str | None,
        download: bool,
        workers: int,
        augment: Augment,
        normalize: bool,
        seed: int,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        at_least("split_seed", split_seed, 0)
        if limit is not None:
            at_least("limit", limit, 1)
        check_share("val_size", val_size)
        check_augment(augment, self.shape)
        self.val_size, self.split_seed, self.limit = val_size, split_seed, limit
        self.data_dir, self.download = data_dir, download
        self.augment, self.normalize = augment, normalize

    def read(self, part: Part) -> Images | None:
        """One part as it is published; None for a validation part cut from the training part."""
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """What the labels 0, 1, ... mean."""
        return [str(label) for label in range(self.classes)]

    @cached_property
    def _train(self) -> Images:
        return self._needed("train")

    @cached_property
    def _test(self) -> Images:
        return self._needed("test")

    def _needed(self, part: Part) -> Images:
        images = self.read(part)
        assert images is not None, f"{type(self).__name__}.read('{part}') returns images"
        return images

    @cached_property
    def _split(self) -> tuple[Tensor, Images, Tensor]:
        """Training indices, and the validation images with their indices."""
        validation = self.read("val")
        if validation is None:
            held = held_out_count(self.val_size, len(self._train.labels), "data.val_size")
            training, held_out = stratified(self._train.labels, held, self.split_seed)
            return self.limited(training), self._train, held_out
        training = self.limited(torch.arange(len(self._train.labels)))
        return training, validation, torch.arange(len(validation.labels))

    def limited(self, training: Tensor) -> Tensor:
        """As many of the training indices `[N]` as `limit` allows, in their order."""
        return training[: self.limit]

    @cached_property
    def _statistics(self) -> tuple[list[float], list[float]]:
        if not self.normalize:
            return [0.0] * self.shape[0], [1.0] * self.shape[0]
        training = self._split[0]
        step = -(-len(training) // (self.statistics_limit or len(training)))
        return channel_statistics(self._train, training[::step], self.divide_by)

    def fingerprint(self) -> str:
        digests, problems = [], []
        for part in (self._train, self.read("val"), self._test):
            try:
                digests.append("" if part is None else part.digest)
            except UserError as problem:  # the files of all parts are told at once
                problems.append(str(problem))
        if problems:
            raise UserError("\n".join(problems))
        return hashlib.blake2b("/".join(digests).encode(), digest_size=16).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": self.shape, "classes": self.classes}

    def example(self) -> Tensor:
        return torch.zeros(2, *self.shape)

    @property
    def repeats(self) -> bool:
        return not augments(self.augment)

    @property
    def sizes(self) -> dict[str, int]:
        training, _, validation = self._split
        return {"train": len(training), "val": len(validation), "test": len(self._test.labels)}

    def preprocessing(self) -> dict[str, Any]:
        """What to do to an image for this network, as JSON: `(pixel / divide_by - mean) / std`."""
        mean, std = self._statistics
        return {
            "channels": self.shape[0],
            "size": list(self.shape[1:]),
            "divide_by": self.divide_by,
            "mean": mean,
            "std": std,
            "class_names": self.class_names,
        }

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented; every process gets as many batches."""
        augmentation = None
        if not self.repeats:
            augmentation = Augmentation(self.augment, len(self._train.labels), self.seed, self.divide_by)
        return self.training_loader(self._batches(self._train, augmentation), self._split[0])

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """In order, not augmented; no loader where nothing is held out."""
        _, images, indices = self._split
        return self._evaluation(images, indices) if len(indices) else []

    def test_dataloader(self) -> ResumableLoader:
        """In order, not augmented."""
        return self._evaluation(self._test, torch.arange(len(self._test.labels)))

    def _evaluation(self, images: Images, indices: Tensor) -> ResumableLoader:
        return self.evaluation_loader(self._batches(images, None), indices)

    def _batches(self, images: Images, augmentation: Augmentation | None) -> ImageBatches:
        mean, std = self._statistics
        return ImageBatches(images, self.divide_by, mean, std, augmentation)
