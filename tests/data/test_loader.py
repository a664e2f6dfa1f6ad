"""Plans of batches for any number of processes, and loaders that stop and continue."""

import os
import signal
from itertools import chain
from multiprocessing import synchronize
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitexp.common.errors import UserError
from bitexp.data.images.augment import Augmentation
from bitexp.data.images.batches import ImageBatches, ImagesInMemory
from bitexp.data.loader import ResumableLoader, evaluation_plan, possible, training_plan

sizes = {
    "count": st.integers(1, 90),
    "batch_size": st.integers(1, 40),
    "world": st.integers(1, 5),
}


@given(**sizes, epoch=st.integers(0, 3))
def test_training_gives_every_rank_as_many_full_batches(count, batch_size, world, epoch):
    indices = torch.arange(count) * 3
    if count < world:
        with pytest.raises(UserError, match="too few for"):
            training_plan(indices, batch_size=batch_size, seed=1, rank=0, world=world)
        return
    plans = [
        training_plan(indices, batch_size=batch_size, seed=1, rank=rank, world=world)(epoch)
        for rank in range(world)
    ]
    steps = max(count // (batch_size * world), 1)
    assert [len(plan) for plan in plans] == [steps] * world
    size = min(batch_size, count // world)
    assert all(len(batch) == size for plan in plans for batch in plan)
    seen = [index for plan in plans for batch in plan for index in batch]
    assert len(set(seen)) == len(seen) == steps * size * world
    assert set(seen) <= set(indices.tolist())
    if count >= batch_size * world:
        # the images of a step do not depend on how many processes share it
        alone = training_plan(indices, batch_size=batch_size * world, seed=1)(epoch)
        together = [list(chain(*batches)) for batches in zip(*plans, strict=True)]
        assert together == alone


@given(**sizes, limit=st.integers(1, 30))
def test_a_limited_epoch_goes_on_where_the_last_one_ended(count, batch_size, world, limit):
    count += world
    indices = torch.arange(count) * 3
    plans = [
        training_plan(indices, batch_size=batch_size, seed=1, rank=rank, world=world, limit=limit)
        for rank in range(world)
    ]
    size = min(batch_size, count // world) * world
    whole = count // size
    per_epoch = min(limit, whole)
    epochs = 2 * whole // per_epoch + 1  # they see everything at least twice
    steps = []
    for epoch in range(epochs):
        ranks = [plan(epoch) for plan in plans]
        assert [len(batches) for batches in ranks] == [per_epoch] * world
        steps += [list(chain(*batches)) for batches in zip(*ranks, strict=True)]
    for begin in range(0, 2 * whole, whole):
        seen = list(chain(*steps[begin : begin + whole]))
        assert len(set(seen)) == len(seen) == whole * size  # all before one is seen again
    # neither the limit nor the number of processes changes what is seen, only where an epoch ends
    unlimited = training_plan(indices, batch_size=size, seed=1)
    assert steps == list(chain(*map(unlimited, range(epochs))))[: len(steps)]


def test_a_limit_beyond_the_data_is_none():
    indices = torch.arange(50)
    plain, large = (training_plan(indices, batch_size=8, seed=1, limit=limit) for limit in (None, 7))
    assert [plain(epoch) for epoch in range(3)] == [large(epoch) for epoch in range(3)]


def test_a_limited_epoch_continues_at_the_exact_batch():
    def limited():
        whole = loader(count=40)
        plan = training_plan(torch.arange(40), batch_size=5, seed=1, limit=3)
        return ResumableLoader(whole.dataset, plan)

    going = limited()
    going.sampler.set_epoch(2)  # batches 6, 7 and, of the next pass, 0
    expected = epoch_of(going)
    assert len(going) == len(expected) == 3
    stopped = limited()
    stopped.load_state_dict({"epoch": 2, "batches": 1})
    stopped.sampler.set_epoch(2)
    assert epoch_of(stopped) == expected[1:]


def test_each_epoch_and_seed_has_an_order_of_its_own():
    plan = training_plan(torch.arange(50), batch_size=10, seed=1)
    orders = [plan(0), plan(1), training_plan(torch.arange(50), batch_size=10, seed=2)(0)]
    assert plan(0) == orders[0]
    assert len({str(order) for order in orders}) == 3


@given(**sizes)
def test_evaluation_sees_each_image_once(count, batch_size, world):
    indices = torch.arange(count) + 5
    plans = [
        evaluation_plan(indices, batch_size=batch_size, rank=rank, world=world)(0) for rank in range(world)
    ]
    seen = [index for plan in plans for batch in plan for index in batch]
    assert sorted(seen) == indices.tolist()
    assert all(1 <= len(batch) <= batch_size for plan in plans for batch in plan)
    if batch_size > 1 and count >= 2 * world:
        assert len({len(plan) for plan in plans}) == 1  # no process waits for another
    if world == 1:
        assert seen == indices.tolist()  # in order


def loader(workers=0, count=23, seed=1):
    """Batches of 5 whose labels are the indices of the images."""
    pixels = torch.arange(count * 16).remainder(256).to(torch.uint8).reshape(count, 1, 4, 4)
    images = ImagesInMemory(pixels, torch.arange(count))
    augmentation = Augmentation({"crop": 1, "flip": True}, count, seed)
    dataset = ImageBatches(images, 255, [0.5], [0.25], augmentation)
    plan = training_plan(torch.arange(count), batch_size=5, seed=seed)
    return ResumableLoader(dataset, plan, workers=workers)


def epoch_of(batches):
    return [(labels.tolist(), images.tolist()) for images, labels in batches]


def test_batches_are_what_a_network_takes():
    images, labels = next(iter(loader()))
    assert (images.shape, images.dtype) == ((5, 1, 4, 4), torch.float32)
    assert (labels.shape, labels.dtype) == ((5,), torch.int64)
    assert images.min() >= -2
    assert images.max() <= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_continues_at_the_exact_batch(workers):
    whole = loader()
    whole.sampler.set_epoch(3)
    expected = epoch_of(whole)

    stopped = loader(workers)
    stopped.sampler.set_epoch(3)
    batches = iter(stopped)
    first = epoch_of(next(batches) for _ in range(2))
    state = stopped.state_dict()  # workers have fetched more than two by now
    assert state == {"epoch": 3, "batches": 2}

    continued = loader(workers)
    continued.load_state_dict(state)
    waiting = iter(continued)  # before the epoch is set, as Lightning does it
    continued.sampler.set_epoch(3)
    assert continued.state_dict() == state
    assert len(continued) == 4  # of the whole epoch
    assert first + epoch_of(waiting) == expected
    assert continued.state_dict() == {"epoch": 3, "batches": 4}
    continued.sampler.set_epoch(4)
    assert continued.state_dict() == {"epoch": 4, "batches": 0}
    whole.sampler.set_epoch(4)
    assert epoch_of(continued) == epoch_of(whole)


def test_an_epoch_that_was_complete_is_not_repeated():
    loaded = loader()
    loaded.load_state_dict({"epoch": 1, "batches": 4})
    assert list(loaded) == []
    loaded.sampler.set_epoch(2)
    assert len(list(loaded)) == 4


def test_an_abandoned_epoch_leaves_no_trace():
    left = loader(workers=2)
    next(iter(left))
    assert epoch_of(left) == epoch_of(loader())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(loader())
    assert torch.equal(torch.get_rng_state(), before)


class Broken:
    labels = torch.zeros(10, dtype=torch.int64)
    digest = ""

    def read(self, indices):
        raise UserError("/photos/cat.png cannot be decoded.\nRepair it")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_for_users_come_out_of_workers_as_they_are(workers):
    dataset = ImageBatches(Broken(), 255, [0.0], [1.0], None)
    plan = evaluation_plan(torch.arange(10), batch_size=5)
    loader = ResumableLoader(dataset, plan, workers=workers)
    with pytest.raises(UserError) as caught:
        list(loader)
    if workers:
        loader._iterator._shutdown_workers()  # left to the garbage collector, it takes 5 seconds
    assert str(caught.value) == "/photos/cat.png cannot be decoded.\nRepair it"


def test_workers_need_no_shared_memory(monkeypatch):
    def full(tensor):
        raise OSError("No space left on device: /dev/shm")

    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.Tensor, full)
    monkeypatch.setattr("bitexp.data.loader.PATIENCE", 5)
    assert epoch_of(loader(workers=1)) == epoch_of(loader())


def test_without_processes_batches_are_prepared_where_one_trains(monkeypatch, capsys):
    def missing(*args, **kwargs):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(synchronize._multiprocessing, "SemLock", missing)
    assert possible(0) == 0
    assert capsys.readouterr().err == ""
    assert possible(2) == 0
    assert "no other process can prepare batches" in capsys.readouterr().err


def test_a_killed_worker_is_a_sentence(monkeypatch):
    # torch listens for its workers' ends from the first loader on; another test may have taken its place
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)

    class Deadly(Broken):
        def read(self, indices):
            os.kill(os.getpid(), signal.SIGKILL)

    dataset = ImageBatches(Deadly(), 255, [0.0], [1.0], None)
    killed = ResumableLoader(dataset, evaluation_plan(torch.arange(10), batch_size=5), workers=1)
    try:
        with pytest.raises(UserError, match="was killed"):
            list(killed)
    finally:
        signal.signal(signal.SIGCHLD, before)
