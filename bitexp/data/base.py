"""What the road asks of every data set, and the loaders that they share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

from torch import Tensor

from bitexp.common.checks import at_least
from bitexp.common.lightning import pl
from bitexp.data.loader import Batches, ResumableLoader, evaluation_plan, possible, training_plan

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


class Data(pl.LightningDataModule):
    """Samples in three parts: train, val (may be empty) and test. Everything is read on first use.

    Args:
        batch_size: samples per training step and process.
        eval_batch_size: upper limit of a batch in validation and test.
        workers: processes that prepare batches; 0: none.
        seed: of the run; the order of training samples follows from it and the epoch.

    An argument out of its range raises `ValueError`.
    """

    title: ClassVar[str]  # for people
    unit: ClassVar[str]  # what is counted in `sizes`, for people
    hub: ClassVar[str | None] = None  # its name on the hub of Hugging Face

    def __init__(self, *, batch_size: int, eval_batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        at_least("batch_size", batch_size, 1)
        at_least("eval_batch_size", eval_batch_size, 1)
        at_least("workers", workers, 0)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.seed = workers, seed

    @classmethod
    def hub_name(cls, arguments: Mapping[str, Any]) -> str | None:
        """What the data with these arguments are called on the hub of Hugging Face; None: not there."""
        return cls.hub

    def locate(self) -> str:
        """Where the data are; fetches them if asked to. `UserError` says how to get them."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash of the data themselves, wherever they lie and however they are compressed."""
        raise NotImplementedError

    @property
    def facts(self) -> dict[str, Any]:
        """What models and tasks have to know, by the names of their parameters; nothing is read for it."""
        raise NotImplementedError

    def example(self) -> Tensor:
        """A batch of blank samples, to send through a model before the data are read."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, int]:
        """Samples in each part."""
        raise NotImplementedError

    @property
    def repeats(self) -> bool:
        """Whether a training sample is the same in every epoch, so that what is said about it may be kept."""
        return False

    def preprocessing(self) -> dict[str, Any]:
        """How to prepare an input for a network that was trained on these data, as JSON."""
        raise NotImplementedError

    @property
    def prompt(self) -> str:
        """Words with which a text like these may begin; empty where there are none."""
        return ""

    def remarks(self) -> str:
        """What else to know about the data before training; may be empty."""
        return ""

    def prepare_data(self) -> None:
        """Fetches the data, in one process."""
        self.locate()

    def setup(self, stage: str | None = None) -> None:
        """Reads what a network has to be told. The test part waits for `test_dataloader`."""
        self.preprocessing()

    def training_loader(self, samples: Batches, indices: Tensor) -> ResumableLoader:
        """Shuffled; every process gets as many batches."""
        rank, world = self._rank_and_world
        limit = None if self.trainer is None else self.trainer.limit_train_batches
        plan = training_plan(
            indices,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            limit=limit if isinstance(limit, int) else None,
        )
        return ResumableLoader(samples, plan, indices=indices, workers=self._workers, pin_memory=self._pins)

    def evaluation_loader(self, samples: Batches, indices: Tensor) -> ResumableLoader:
        """In order, each sample in one process."""
        rank, world = self._rank_and_world
        plan = evaluation_plan(indices, batch_size=self.eval_batch_size, rank=rank, world=world)
        return ResumableLoader(samples, plan, workers=self._workers, pin_memory=self._pins)

    @cached_property
    def _workers(self) -> int:
        return possible(self.workers)

    @property
    def _pins(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def _rank_and_world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
