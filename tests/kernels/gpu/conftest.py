"""These run where Triton can start kernels: on a GPU with `-m gpu`, elsewhere in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so `tests/kernels/test_triton.py` runs this
folder in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

f32 = np.float32


def on_gpu(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "gpu")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without a GPU and outside of the interpreter there is nothing to run here."""
    return None if INTERPRETED or on_gpu(config) else True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU every test here is one for it."""
    if on_gpu(config):
        if not torch.cuda.is_available():
            pytest.exit("the tests for a GPU need one, and torch sees none", returncode=2)
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where the tensors lie."""
    return "cuda" if on_gpu(request.config) else "cpu"


@pytest.fixture(scope="package", autouse=True)
def poisoned() -> Iterator[None]:
    """New memory is full of NaN, or of 77: what a kernel does not write shows."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poison(torch.empty))
        patch.setattr(torch, "empty_like", poison(torch.empty_like))
        yield


def quantized(x: Tensor, qmax: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes and steps of the rows of x, every step rounded in fp32."""
    rows = x.float().cpu().numpy()
    absmax = np.maximum(np.abs(rows).max(-1, keepdims=True, initial=0), f32(1e-5))
    codes = np.rint(rows * (f32(1) / absmax * f32(qmax))).clip(None, 127)
    return codes.astype(np.int64), absmax / f32(qmax)


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Tensor]:
    """The output of a layer by numpy: sums in int64, then each step rounded by itself in fp32."""

    def layer(
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        qmax: int = 127,
        scaled_bias: bool = False,
    ) -> Tensor:
        x_codes, x_scale = quantized(x.reshape(-1, x.shape[-1]), qmax)
        y = (x_codes @ codes.cpu().numpy().astype(np.int64).T).astype(f32)
        add = f32(0) if bias is None else bias.cpu().numpy()
        if scaled_bias:
            y = y + add
        y = y * (x_scale * scale.cpu().numpy())
        if not scaled_bias and bias is not None:
            y = y + add
        return torch.from_numpy(y).reshape(*x.shape[:-1], len(codes))

    return layer


@pytest.fixture(scope="session")
def oracle_codes() -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """Codes (int64) and steps of rows by numpy."""

    def rows(x: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
        codes, scale = quantized(x, qmax)
        return torch.from_numpy(codes), torch.from_numpy(scale)[:, 0]

    return rows
