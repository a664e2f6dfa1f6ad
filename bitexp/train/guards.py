"""Stops a run that cannot go on: a loss that is no number, or a signal from outside."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from bitexp.common.errors import Diverged, Stopped
from bitexp.common.lightning import pl


class FiniteLoss(pl.Callback):
    """Raises `Diverged` when a rank's training loss is not finite; on a GPU every `every` batches."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        look = loss.device.type == "cpu" or batch_idx % self.every == 0
        bad = look and not math.isfinite(loss.item())
        if look and trainer.world_size > 1:  # all ranks stop, or none
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            raise Diverged(f"the training loss is {float(loss)} at step {trainer.global_step}")


class Signals:
    """Within `with Signals() as signals`, SIGHUP, SIGINT, SIGTERM and the warnings are noted in `received`.

    A second one ends the process at once; but a SIGTERM within a second of the first is the same one, sent
    again (as by the threads of a parent that die one after the other). SIGUSR1 and SIGUSR2 are warnings,
    which Slurm sends before the SIGTERM of its time limit. Outside the main thread nothing is caught.
    """

    WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
    KINDS = (*WARNINGS, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    ECHO = 1.0  # seconds

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.getsignal(kind) for kind in self.KINDS}
            if self._before[signal.SIGHUP] == signal.SIG_IGN:  # nohup: the terminal may go
                del self._before[signal.SIGHUP]
            self.catch()
        return self

    def catch(self) -> None:
        """Installs the handlers; again where another library has put its own in their place."""
        for kind in self._before:
            signal.signal(kind, self._note)

    def check(self) -> None:
        """Raises `Stopped` where a signal was noted."""
        if self.received is not None:
            raise Stopped(self.received)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received in (None, *self.WARNINGS):
            self.received, self._at = signum, time.monotonic()
        elif signum != signal.SIGTERM or time.monotonic() - self._at > self.ECHO:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if isinstance(
            error, pl.utilities.exceptions.SIGTERMException
        ):  # caught by Lightning before `catch` was called
            raise Stopped(signal.SIGTERM) from error
