"""The kernels that run on the CPUs of this machine."""

from __future__ import annotations

import pytest

from bitexp.kernels import KERNELS

AVAILABLE = [name for name in KERNELS.names() if not KERNELS.get(name).unavailable("cpu")]

every_kernel = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(name not in AVAILABLE, reason=str(KERNELS.get(name).unavailable("cpu"))),
        )
        for name in KERNELS.names()
    ],
)
"""Gives a test the name of each kernel; those that cannot run here are skipped with their reason."""
