"""Image classification: cross entropy, accuracy and a confusion matrix; mixup and cutmix as options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bitexp.common.torchmetrics import MulticlassAccuracy, MulticlassConfusionMatrix
from bitexp.common.torchvision import import_torchvision
from bitexp.config.optimization import Optimizer
from bitexp.tasks.objectives import cross_entropy
from bitexp.tasks.task import TASKS, Task

Strength = Annotated[float, Field(ge=0)]


@TASKS.register("image_classification")
class ImageClassification(Task):
    """Trains a model `[B, C, H, W] -> [B, classes]`.

    Args:
        label_smoothing: share of the target spread over all classes; not in validation and test.
        mixup, cutmix: alpha of their Beta distribution, 0 to switch off; with both on, each batch
            draws one of the two (arXiv 1710.09412, 1905.04899).
    """

    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"val/loss": "min", "val/accuracy": "max"}
    headline = "accuracy"
    unit = "images"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        classes: int,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)],
        mixup: Strength,
        cutmix: Strength,
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer, **options)
        self.label_smoothing = label_smoothing
        self.mix = mixer(classes, mixup, cutmix)
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")
        self.confusion = MulticlassConfusionMatrix(classes)
        self.predictions: list[tuple[Tensor, Tensor]] = []
        """Of each batch of the test, with its labels."""
        self.smallest_type = torch.uint8 if classes <= 256 else torch.int32

    @property
    def augments(self) -> bool:
        return self.mix is not None

    def augmented(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch if self.mix is None else self.mix(*batch)

    def measured(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The accuracy; of images mixed with others by the label of the larger share."""
        labels = batch[1].argmax(1) if batch[1].is_floating_point() else batch[1]
        return {"accuracy": (outputs.argmax(1) == labels).float().mean()}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_accuracy)

    def on_test_start(self) -> None:
        self.predictions = []

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self._evaluate(batch, "test", self.test_accuracy)
        self.confusion.update(logits, batch[1])
        self.predictions.append((logits.argmax(1).cpu(), batch[1].cpu()))

    def _evaluate(self, batch: tuple[Tensor, Tensor], prefix: str, accuracy: MulticlassAccuracy) -> Tensor:
        logits, labels = self.outputs(batch), batch[1]
        accuracy.update(logits, labels)
        size = len(labels)
        options: dict[str, Any] = {"batch_size": size, "on_epoch": True}
        self.log(f"{prefix}/loss", cross_entropy(logits, labels), sync_dist=True, **options)
        self.log(f"{prefix}/accuracy", accuracy, **options)
        return logits

    def test_predictions(self) -> dict[str, Tensor]:
        """Of the last test, a byte each for up to 256 classes; empty before there was one."""
        columns = zip(*self.predictions, strict=True)
        names = ("prediction", "label")
        return {
            name: torch.cat(parts).to(self.smallest_type) for name, parts in zip(names, columns, strict=False)
        }

    def test_tables(self) -> dict[str, list[list[int]]]:
        """Tables of the last test: the confusion matrix, rows are true classes, columns predictions."""
        return {"confusion_matrix": self.confusion.compute().int().tolist()}


def mixer(classes: int, mixup: float, cutmix: float) -> Any | None:
    """torchvision's MixUp, CutMix, or a draw between the two; None when both are off."""
    if mixup == 0 and cutmix == 0:
        return None
    v2 = import_torchvision("torchvision.transforms.v2")
    choices: list[nn.Module] = []
    if mixup:
        choices.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        choices.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    return choices[0] if len(choices) == 1 else v2.RandomChoice(choices)
