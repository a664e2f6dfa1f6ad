"""A frozen model as one CUDA graph: at few tokens, starting its kernels takes longer than they do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Calls before the capture: they compile the kernels and fill torch's caches."""


class Replay:
    """`module(x)` recorded once for the shape and dtype of `example`, then replayed.

    It must compute without gradients, always the same way, and never wait for the GPU.

    Raises:
        ValueError: the example is not on a GPU, or later another shape or dtype is asked for.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        if not example.is_cuda:
            raise ValueError(f"a CUDA graph needs its input on a GPU, not on {example.device}")
        self.input = example.detach().clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(example.device), torch.no_grad():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    module(self.input)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph):
                self.output: Tensor = module(self.input)

    def __call__(self, x: Tensor) -> Tensor:
        """The output for x; its memory is written again by the next call."""
        if x.shape != self.input.shape or x.dtype != self.input.dtype:
            raise ValueError(
                f"the graph was recorded for {self.input.dtype} {list(self.input.shape)}, "
                f"not for {x.dtype} {list(x.shape)}: record another"
            )
        self.input.copy_(x)
        self.graph.replay()
        return self.output
