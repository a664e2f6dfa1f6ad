"""Distributed data parallel: the gradients of two processes are averaged, like those of any layer."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from bitexp.kernels import KERNELS
from bitexp.quant import QUANTIZERS, set_backend
from bitexp.quant.layers import BitConv2d, BitLinear
from tests.support.kernels import every_kernel

RANKS = 2


def build() -> nn.Module:
    """A convolution and a linear layer, the same in every process."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS["ternary_mean"]
    conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 4 * 4, 5)
    return nn.Sequential(BitConv2d(conv, quantizer), nn.Flatten(), BitLinear(linear, quantizer))


def gradients(model: nn.Module, rank: int) -> list[Tensor]:
    """Those of all parameters after one backward of the rank's own batch."""
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(rank))
    model(x).square().mean().backward()
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def train(rank: int, folder: str) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    try:
        model = DistributedDataParallel(build())
        torch.save(gradients(model, rank), f"{folder}/{rank}.pt")
        dist.barrier()
        del model
        gc.collect()  # it is in cycles and would hold the group's threads until the interpreter is torn down
    finally:
        dist.destroy_process_group()


def test_gradients_of_two_processes_are_averaged(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(train, (str(tmp_path),), nprocs=RANKS, start_method="fork")
    alone = [gradients(build(), rank) for rank in range(RANKS)]
    assert any(not torch.equal(a, b) for a, b in zip(*alone, strict=True))
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"{rank}.pt")
        for averaged, one, other in zip(found, *alone, strict=True):
            assert_close(averaged, (one + other) / 2, rtol=1e-6, atol=1e-8)


def optimized(model: nn.Module, ranks: tuple[int, ...]) -> nn.Module:
    """After three steps of AdamW on the batches of some ranks, whose losses are averaged."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(3):
        optimizer.zero_grad()
        for rank in ranks:
            x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(10 * step + rank))
            (model(x).square().mean() / len(ranks)).backward()
        optimizer.step()
    return model


def shard(rank: int, folder: str, kernel: str) -> None:
    """What each process does whose weights are shards: the whole ones are there for the forward only."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    try:
        model = build()
        set_backend(model, KERNELS.get(kernel).backend)
        mesh = init_device_mesh("cpu", (RANKS,))
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        optimized(model, (rank,))
        whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
        torch.save(whole, f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@every_kernel
def test_sharded_weights_train_as_whole_ones_do(tmp_path: Path, kernel: str) -> None:
    torch.multiprocessing.spawn(shard, (str(tmp_path), kernel), nprocs=RANKS)
    alone = build()
    set_backend(alone, KERNELS.get(kernel).backend)
    expected = optimized(alone, tuple(range(RANKS))).state_dict()
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert_close(found[name], value, rtol=1e-4, atol=1e-5)
