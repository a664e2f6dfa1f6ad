"""A program of torch.export: it runs without bitexp, in Python, and is where ExecuTorch and AOTInductor "
"begin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bitexp.deploy.exporters.exporter import EXPORTERS, Exported, Exporter, InexpressibleError, Packed
from bitexp.models.decoder import Decoder


@EXPORTERS.register("torch")
class TorchProgram(Exporter):
    """model.pt2, with codes as int8.

    Args:
        license: for the README.
    """

    engine: ClassVar[str] = "torch"

    def __init__(self, *, license: str = "unknown") -> None:
        self.license = license

    def check(self, model: nn.Module, tokenizer: str | None = None) -> None:
        """Every model of bitexp can go there."""

    def write(self, packed: Packed, folder: Path) -> Exported:
        example, shapes = example_of(packed.model, packed.preprocessing)
        with torch.no_grad():  # no straight-through gradient of the inputs
            program = torch.export.export(Alone(packed.model).eval(), (example,), dynamic_shapes=(shapes,))
        torch.export.save(program, folder / "model.pt2")
        return Exported(
            ["The same integers and the same order of operations: equal to the packed file to the bit."],
            USAGE.format(inputs=words_of(packed.model, packed.preprocessing)),
            {"license": self.license, "tags": ["bitexp", "quantization"]},
        )


USAGE = """\
import torch

model = torch.export.load("model.pt2").module()
outputs = model(inputs)  # {inputs}
"""


class Alone(nn.Module):
    """A model with one input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs)


def example_of(model: nn.Module, preprocessing: Mapping[str, Any]) -> tuple[Tensor, dict[int, Any]]:
    """A batch of inputs, and which of its sizes may be others.

    Raises:
        InexpressibleError: the packed file does not say what its inputs are.
    """
    batch = torch.export.Dim("batch", min=1)
    if isinstance(model, Decoder):
        tokens = torch.zeros(2, min(5, model.context), dtype=torch.int64)
        return tokens, {0: batch, 1: torch.export.Dim("tokens", min=1, max=model.context)}
    if "size" not in preprocessing:
        raise InexpressibleError(
            "the packed file does not say what its inputs are, so no example can be made"
        )
    return torch.zeros(2, preprocessing["channels"], *preprocessing["size"]), {0: batch}


def words_of(model: nn.Module, preprocessing: Mapping[str, Any]) -> str:
    """What the inputs are."""
    if isinstance(model, Decoder):
        return f"int64 [batch, tokens], up to {model.context} tokens; logits of the next token at every place"
    size = ", ".join(map(str, [preprocessing["channels"], *preprocessing["size"]]))
    return (
        f"float32 [batch, {size}], (pixel / {preprocessing['divide_by']:g} - {preprocessing['mean']}) / "
        f"{preprocessing['std']}; logits of the classes"
    )
