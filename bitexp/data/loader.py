"""Loaders that continue at the exact batch: what it holds follows from (seed, epoch, rank, number).

Lightning saves and restores `state_dict` of a loader with its checkpoints, and calls `set_epoch` of
its sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bitexp.common.errors import UserError
from bitexp.common.randomness import generator

Plan = Callable[[int], list[list[int]]]  # an epoch -> the indices of the samples in each batch


def training_plan(
    indices: Tensor, *, batch_size: int, seed: int, rank: int = 0, world: int = 1, limit: int | None = None
) -> Plan:
    """Shuffled batches of `batch_size`, as many on every rank; an incomplete rest is dropped.

    Where `indices` `[N]` do not fill one batch on each rank, there is one short batch. The `world`
    batches of a step are one stretch of the order, which does not depend on `world`. With a `limit` of
    batches an epoch goes on where the one before it ended, so that all samples are seen before one is
    seen again.

    Raises:
        UserError: fewer samples than ranks.
    """
    size = min(batch_size, len(indices) // world)
    if size == 0:
        raise UserError(f"{len(indices)} training samples are too few for {world} processes")
    whole = len(indices) // (size * world)
    return partial(_stretch, indices, size, seed, rank, world, whole, min(whole, limit or whole))


def _stretch(
    indices: Tensor, size: int, seed: int, rank: int, world: int, whole: int, count: int, epoch: int
) -> list[list[int]]:
    """`count` batches from number epoch * count on, of passes over the data of `whole` batches each."""
    batches: list[list[int]] = []
    while len(batches) < count:
        number, first = divmod(epoch * count + len(batches), whole)
        order = torch.randperm(len(indices), generator=generator("order", seed, number))
        shuffled = indices[order[: whole * size * world]].reshape(whole, world, size)[:, rank]
        batches += shuffled[first : first + count - len(batches)].tolist()
    return batches


def evaluation_plan(indices: Tensor, *, batch_size: int, rank: int = 0, world: int = 1) -> Plan:
    """The samples in order, each on one rank only, in nearly equal batches up to `batch_size`.

    Equal sizes give every rank as many batches without padding, and leave no tiny last batch.
    """
    count = len(indices)
    pieces = ceil(count / (batch_size * world)) * world
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    batches = [indices[edges[k] : edges[k + 1]].tolist() for k in range(rank, pieces, world)]
    return partial(_in_order, [batch for batch in batches if batch])


def _in_order(batches: list[list[int]], epoch: int) -> list[list[int]]:
    return batches


class BatchSampler(Sampler[tuple[int, list[int]]]):
    """Yields (epoch, sample indices) for each batch of an epoch that has not been delivered yet."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = 0
        self.delivered = 0  # batches of this epoch that have reached the training loop
        self._length = len(plan(0))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of another epoch; the epoch it is at already keeps its position."""
        if epoch != self.epoch:
            self.epoch, self.delivered = epoch, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for indices in self.plan(self.epoch)[self.delivered :]:
            yield self.epoch, indices


class ResumableLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader over whole batches that can be stopped and continued at any of them.

    `len` is that of the whole epoch, also after a resumption. Without `set_epoch`, each iteration
    repeats the same epoch.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, Tensor]],
        plan: Plan,
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches = BatchSampler(plan)
        self._resumed = False
        super().__init__(
            dataset,
            batch_size=None,  # an item of the data set is a batch already
            sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else every iteration draws from the global generator
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        # A generator: Lightning asks for an iterator before it sets the epoch, and workers would
        # fetch at once. Batches are counted when they are handed out, not when workers fetch them.
        if not self._resumed:
            self.batches.delivered = 0
        self._resumed = False
        try:
            for inputs, targets in super().__iter__():
                self.batches.delivered += 1
                yield inputs, targets
        except UserError as error:  # a worker puts its traceback before the message
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self.batches.epoch, "batches": self.batches.delivered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next iteration starts after the batches handed out when the state was taken."""
        self.batches.epoch = state_dict["epoch"]
        self.batches.delivered = state_dict["batches"]
        self._resumed = True
