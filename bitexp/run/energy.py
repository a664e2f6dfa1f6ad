"""Energy as the machine counts it: GPUs by NVML, processors by RAPL, less what they take when idle.

A counter is of a whole GPU or processor, whatever else runs there. Where none can be read nothing is said,
and reports have the words "not measured" beside the estimate.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bitexp.run.parts import Parts

INFERENCE, TRAINING = "energy/inference_joules", "energy/training_joules"
"""Metrics: of one image or token by the packed file, and of a training that was not interrupted."""
POWERCAP = Path("/sys/class/powercap")
IDLE = 1.0
"""Seconds in which the power of an idle machine is measured, once in a process."""
LOOP = 1.0
"""Seconds for which an inference is repeated: RAPL counts in milliseconds, NVML in some tens of them."""


class Counter(Protocol):
    """What counts joules."""

    def joules(self) -> float:
        """Since some moment in the past, without end."""


class Rapl:
    """A processor, by Linux's powercap. Its counter begins anew at some range, which is minutes."""

    def __init__(self, zone: Path) -> None:
        self.file = zone / "energy_uj"
        self.range = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self.last, self.rounds = self.read(), 0

    def read(self) -> int:
        """Microjoules, up to the range."""
        return int(self.file.read_text(encoding="ascii"))

    def joules(self) -> float:
        now = self.read()
        self.rounds += now < self.last
        self.last = now
        return (self.rounds * self.range + now) / 1e6


class Nvml:
    """A GPU, by NVIDIA's library, which counts millijoules since the driver was loaded."""

    def __init__(self, library: Any, uuid: str) -> None:
        self.library, self.handle = library, ctypes.c_void_p()
        found = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(self.handle))
        if found != 0:
            raise OSError(f"NVML does not know the GPU {uuid}: error {found}")
        self.joules()

    def joules(self) -> float:
        millijoules = ctypes.c_ulonglong()
        found = self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(millijoules))
        if found != 0:
            raise OSError(f"NVML does not count the energy of this GPU: error {found}")
        return millijoules.value / 1e3


@cache
def counters(device: str) -> tuple[Counter, ...]:
    """Those of all processors, and of GPUs where a run is on them; none where one cannot be read."""
    found: list[Counter] = []
    with suppress(OSError, ValueError):
        found += [Rapl(zone) for zone in sorted(POWERCAP.glob("*-rapl:?"))]
        if device == "cuda":
            library = ctypes.CDLL("libnvidia-ml.so.1")
            library.nvmlInit_v2()
            uuids = [torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count())]
            found += [Nvml(library, str(uuid)) for uuid in uuids]
        return tuple(found)
    return ()  # a part of what was spent would be taken for all of it


@dataclass
class Spent:
    """Joules above those of an idle machine; None while it is measured, and where nothing counts."""

    joules: float | None = None


class Meter:
    """Measures by counters.

    Args:
        sleep: passes the time in which the machine is idle.
    """

    def __init__(self, counters: Sequence[Counter], sleep: Callable[[float], object] = time.sleep) -> None:
        self.counters = counters
        self.idle_watts = 0.0
        if counters:
            before, began = self.total(), time.monotonic()
            sleep(IDLE)
            self.idle_watts = (self.total() - before) / (time.monotonic() - began)

    def total(self) -> float:
        """Joules of all counters."""
        return sum(counter.joules() for counter in self.counters)

    @contextmanager
    def measure(self) -> Iterator[Spent]:
        """What is spent in a `with` block."""
        spent = Spent()
        if not self.counters:
            yield spent
            return
        before, began = self.total(), time.monotonic()
        yield spent
        spent.joules = self.total() - before - self.idle_watts * (time.monotonic() - began)

    def of_inference(self, infer: Callable[[], object], amount: int) -> float | None:
        """Joules of one image or token, where a call of `infer` is about `amount` of them."""
        if not self.counters:
            return None
        infer()
        count = 0
        with self.measure() as spent:
            began = time.monotonic()
            while time.monotonic() - began < LOOP:
                infer()
                count += amount
        return None if spent.joules is None else spent.joules / count


def inference_energy(parts: Parts, model: nn.Module, device: str) -> dict[str, float]:
    """Of one image or token, with a batch of the test set at a time; nothing where nothing counts."""
    measured = meter(device)
    if not measured.counters:
        return {}
    batch = next(iter(parts.data.test_dataloader()))
    inputs, model = batch[0].to(device), model.to(device).eval()

    def infer() -> None:
        with torch.inference_mode():
            model(inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    joules = measured.of_inference(infer, parts.task.amount(batch))
    return {} if joules is None else {INFERENCE: joules}


@cache
def meter(device: str) -> Meter:
    """That of this process; measures the idle machine at first."""
    return Meter(counters(device))
