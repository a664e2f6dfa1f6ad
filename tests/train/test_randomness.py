"""Random numbers of a batch follow from (seed, epoch, batch, rank) and from nothing else."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch

from bitexp.common.randomness import derived_seed
from bitexp.train.randomness import Randomness


def draw(seed: int, epoch: int, batch: int, rank: int) -> float:
    trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    Randomness(seed).on_train_batch_start(trainer, None, None, batch)
    return float(torch.rand(()))


def test_the_same_place_draws_the_same_whatever_came_before() -> None:
    first = draw(1, 2, 3, 4)
    torch.rand(100)
    assert draw(1, 2, 3, 4) == first


def test_other_places_draw_other_numbers() -> None:
    places = list(itertools.product(range(3), repeat=4))
    assert len({draw(*place) for place in places}) == len(places)


def test_seeds_fit_and_depend_on_every_part() -> None:
    seeds = {derived_seed(*parts) for parts in [(0,), (1,), (0, 0), (0, "init"), ("0",), (10,), (1, 0)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "init") == derived_seed(0, "init")
