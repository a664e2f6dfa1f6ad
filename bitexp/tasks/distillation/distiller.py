"""A teacher beside a task: what it says about each batch, and how far the student is from it.

Neither is a module, so that no checkpoint, average, optimizer, process group or size knows of the teacher.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from bitexp.common.console import error as say
from bitexp.common.errors import first_line, is_of_the_machine
from bitexp.data.loader import ResumableLoader
from bitexp.models.taps import Watch
from bitexp.tasks.distillation.cached_logits import CachedLogits, open_logits
from bitexp.tasks.distillation.losses import DistillationLoss, Seen

Precision = Literal["32", "bf16"]


class Teacher:
    """A trained network that is watched and never trained: in eval mode, without gradient or dropout.

    Args:
        model: the network; it follows the batches to their device.
        parts: what is looked at beside the logits (`bitexp.models.taps`).
        precision: `bf16` multiplies in it (autocast), whatever the student trains in.

    Raises:
        ValueError: the network does not say where such a part is.
    """

    def __init__(self, model: nn.Module, parts: tuple[str, ...] = (), precision: Precision = "32") -> None:
        self.model = model.eval().requires_grad_(False)
        self.watch, self.precision = Watch(model, parts), precision
        self.device: torch.device | None = None

    @cached_property
    def digest(self) -> str:
        """A hash of all its weights, by name."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)}\0".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Seen:
        """What it gives out for a batch."""
        if inputs.device != self.device:
            self.model.to(inputs.device)
            self.device = inputs.device
        if inputs.is_floating_point():
            inputs = inputs.float()
        autocast = torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with autocast, self.watch:
            logits = self.model(inputs).float()
        return Seen(logits, self.watch.take(), heads_of(self.model))

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # the average of a task's weights begins with a copy of the task


class Distiller:
    """What a task needs to learn from a teacher beside its own objectives.

    Args:
        losses: the terms by name; those of weight 0 are left out.
        own: the weight of the task's own loss, of its objectives; 0: labels are not looked at.
        cache: where the teacher's logits are to be kept, all that decides about them beside the samples.

    Raises:
        ValueError: a network does not say where its parts are that a loss looks at, or nothing has a weight.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        losses: Mapping[str, DistillationLoss],
        own: float = 1.0,
        precision: Precision = "32",
        cache: Mapping[str, Any] | None = None,
    ) -> None:
        self.losses = {name: loss for name, loss in losses.items() if loss.weight}
        if not self.losses:
            raise ValueError("a teacher is named and no loss looks at it: give one a weight")
        self.own = own
        self.parts = tuple(dict.fromkeys(part for loss in self.losses.values() for part in loss.parts))
        self.student, self.watch = student, Watch(student, self.parts)
        try:
            self.teacher = Teacher(teacher, self.parts, precision)
        except ValueError as error:
            raise ValueError(f"the teacher: {error}") from error
        self.cache = cache
        self.cached: CachedLogits | None = None
        self.loader: ResumableLoader | None = None
        self.outputs = 0
        """Logits for an input; known once the two are checked."""

    @property
    def weights(self) -> dict[str, float]:
        """The factors of the terms."""
        return {name: loss.weight for name, loss in self.losses.items()}

    def check(self, example: Tensor) -> None:
        """Sends a blank batch through both, and compares them once.

        Raises:
            ValueError: they do not go together, in words.
        """
        was_training = self.student.training
        self.student.eval()
        try:
            with torch.no_grad(), self.watch:
                logits = self.student(example).float()
        finally:
            self.student.train(was_training)
        student = self.seen(logits)
        try:
            teacher = self.teacher(example)
        except (RuntimeError, ValueError, IndexError) as error:
            if is_of_the_machine(error):
                raise
            raise ValueError(
                f"the teacher cannot take a batch of {list(example.shape)}: {first_line(error)}"
            ) from error
        if teacher.logits.shape != logits.shape:
            raise ValueError(
                f"the teacher gives {list(teacher.logits.shape[1:])} for an input and the student "
                f"{list(logits.shape[1:])}: both must have the same classes, or the same vocabulary"
            )
        self.outputs = logits[0].numel()
        for loss in self.losses.values():
            loss.check(student, teacher)

    def seen(self, logits: Tensor) -> Seen:
        """Of the student, after it ran within `watch`."""
        return Seen(logits, self.watch.take(), heads_of(self.student))

    def prepare(self, loader: Any, device: torch.device) -> None:
        """Before the first step: where its logits are to be kept, the teacher looks at all samples.

        Args:
            loader: of the training part.
        """
        if self.cache is None:
            return
        assert isinstance(loader, ResumableLoader)
        assert loader.indices is not None
        read, indices = loader.read, loader.indices

        def compute(numbers: list[int]) -> Tensor:
            return self.teacher(read(numbers)[0].to(device)).logits

        about = {**self.cache, "precision": self.teacher.precision, "device": device.type}
        size = len(loader.batches.plan(0)[0])
        self.loader, self.cached = loader, open_logits(about, indices, size, compute)
        if self.cached.mended:
            say("the kept logits of the teacher were damaged, and have been computed again")

    def terms(self, outputs: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """How far the student is from its teacher, by loss and without weights.

        Args:
            outputs: of the student, in fp32, from within `watch`.
            inputs: what it was trained on, augmented.
        """
        student = self.seen(outputs)
        if self.cached is None or self.loader is None:
            teacher = self.teacher(inputs)
        else:
            teacher = Seen(self.cached.rows(self.loader.current).to(outputs.device))
        return {name: loss(student, teacher) for name, loss in self.losses.items()}

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def heads_of(model: nn.Module) -> int | None:
    """The heads of a network's attention."""
    heads = getattr(model, "heads", None)
    return heads if isinstance(heads, int) else None


NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
"""Around the forward of a student without a teacher."""
