"""What forms are fitted to: inputs of the training part, and the norms of activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bitexp.data.base import Data
from bitexp.deploy.score import Samples

SMALLEST = 1e-3
"""How little a column may count, as a share of the mean: inputs that were never seen are not free."""


def training_samples(data: Data, count: int) -> Samples:
    """The first samples of the first epoch; all where there are fewer."""
    inputs, targets, left = [], [], count
    for some, labels in data.train_dataloader():
        inputs.append(some[:left])
        targets.append(labels[:left])
        left -= len(some)
        if left <= 0:
            break
    return Samples(torch.cat(inputs), torch.cat(targets))


def training_batches(samples: Samples, size: int, steps: int) -> Iterator[Tensor]:
    """So many batches of inputs, over and over."""
    batches = samples.inputs.split(size)
    for step in range(steps):
        yield batches[step % len(batches)]


def activation_norms(model: nn.Module, names: list[str], inputs: Tensor) -> dict[str, Tensor]:
    """For weights `[out, ...]` by name, the norms of the inputs that each of their columns meets, `[in]`.

    They are in units of their mean. The places of a convolution's kernel share the norm of their channel, and
    groups of channels the mean over groups.
    """
    squares: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        weight: Tensor = module.get_parameter("weight")

        def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().float()
            dim = x.dim() - 3 if weight.dim() == 4 else x.dim() - 1
            own = x.movedim(dim, -1).square().flatten(0, -2).sum(0).reshape(-1, weight.shape[1]).mean(0)
            squares[name] = squares.get(name, torch.zeros_like(own)) + own

        handles.append(module.register_forward_pre_hook(see))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in names:
        watch(name, model.get_submodule(name.removesuffix(".weight")))
    try:
        with torch.no_grad():
            for some in inputs.split(64):
                model(some)
    finally:
        for handle in handles:
            handle.remove()
    return {name: columns_of(model.get_parameter(name), squares[name].sqrt()) for name in names}


def columns_of(weight: Tensor, norms: Tensor) -> Tensor:
    """Norms of channels as those of the columns of a matrix `[out, in]`, in units of their mean."""
    mean = norms.mean()
    units = (norms / mean).clamp(min=SMALLEST) if float(mean) > 0 else torch.ones_like(norms)
    return units.repeat_interleave(weight[0, 0].numel() if weight.dim() > 2 else 1)
