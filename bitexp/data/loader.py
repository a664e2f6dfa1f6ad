"""Loaders that continue at the exact batch: what it holds follows from (seed, epoch, rank, number).

Lightning saves and restores `state_dict` of a loader with its checkpoints, and calls `set_epoch` of
its sampler.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from bitexp.common.console import error
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
        self.planned: list[list[int]] = []  # the batches of the epoch that is being iterated
        self._length = len(plan(0))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of another epoch; the epoch it is at already keeps its position."""
        if epoch != self.epoch:
            self.epoch, self.delivered = epoch, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        self.planned = self.plan(self.epoch)
        for indices in self.planned[self.delivered :]:
            yield self.epoch, indices


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """A data set whose items are whole batches, asked for by (epoch, sample indices)."""

    def __getitem__(self, request: tuple[int, list[int]]) -> tuple[Tensor, Tensor]:
        """Inputs and targets in their small form, made by a worker where there are workers."""
        raise NotImplementedError

    def finish(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gets, made where it trains."""
        return inputs, targets


PATIENCE = 600  # seconds for one batch; without a limit, workers that hang are waited for without a word


class ResumableLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader over whole batches that can be stopped and continued at any of them.

    `len` is that of the whole epoch, also after a resumption. Without `set_epoch`, each iteration
    repeats the same epoch.
    """

    def __init__(
        self,
        dataset: Batches,
        plan: Plan,
        *,
        indices: Tensor | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """`indices` are those of all samples that the plan draws from."""
        self.batches, self.indices = BatchSampler(plan), indices
        self._finish, self._pins = dataset.finish, pin_memory
        self._resumed = False
        super().__init__(
            dataset,
            batch_size=None,  # an item of the data set is a batch already
            sampler=self.batches,
            num_workers=workers,
            collate_fn=_through_pipes,
            persistent_workers=workers > 0,
            timeout=PATIENCE if workers else 0,
            generator=torch.Generator(),  # else every iteration draws from the global generator
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        # A generator: Lightning asks for an iterator before it sets the epoch, and workers would
        # fetch at once. Batches are counted when they are handed out, not when workers fetch them.
        if not self._resumed:
            self.batches.delivered = 0
        self._resumed = False
        for inputs, targets in self._fetched():
            self.batches.delivered += 1
            inputs, targets = self._finish(torch.as_tensor(inputs), torch.as_tensor(targets))
            yield (inputs.pin_memory(), targets.pin_memory()) if self._pins else (inputs, targets)

    @property
    def current(self) -> list[int]:
        """The indices of the samples in the batch that was handed out last."""
        return self.batches.planned[self.batches.delivered - 1]

    def read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """These samples as a batch, as the network gets them in the first epoch."""
        inputs, targets = self.dataset[0, indices]
        return self._finish(torch.as_tensor(inputs), torch.as_tensor(targets))

    def _fetched(self) -> Iterator[tuple[Tensor | np.ndarray, Tensor | np.ndarray]]:
        if self.num_workers == 0:  # what a DataLoader does about it takes longer than a small batch
            yield from (self.dataset[request] for request in self.batches)
            return
        try:
            yield from super().__iter__()
        except UserError as problem:  # a worker puts its traceback before the message
            raise UserError(str(problem).rpartition("UserError: ")[2].strip()) from problem
        except RuntimeError as problem:
            if not str(problem).startswith("DataLoader"):
                raise
            raise UserError(
                f"A process that prepares batches was killed, or gave none for {PATIENCE} seconds: "
                f"{problem}. With data.workers=0 the process that trains prepares them"
            ) from problem

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self.batches.epoch, "batches": self.batches.delivered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next iteration starts after the batches handed out when the state was taken."""
        self.batches.epoch = state_dict["epoch"]
        self.batches.delivered = state_dict["batches"]
        self._resumed = True


def _through_pipes(batch: Any) -> tuple[Any, Any]:
    """A worker sends arrays, as tensors would go through /dev/shm, which containers keep small."""
    inputs, targets = batch
    return (inputs.numpy(), targets.numpy()) if get_worker_info() else (inputs, targets)


def possible(workers: int) -> int:
    """So many workers, or none, which is said, where processes cannot talk to each other."""
    try:  # a queue needs semaphores, and those a place in /dev/shm
        queues: list[Any] = [multiprocessing.Queue() for _ in range(workers + 1 if workers else 0)]
        for queue in queues:
            queue.close()
    except OSError as problem:
        error(f"no other process can prepare batches ({problem}): the one that trains does it")
        return 0
    return workers
