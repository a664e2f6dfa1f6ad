"""An ONNX graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.engines.engine import ENGINES, Engine, Text

ACCURACY = "session.qdq_matmulnbits_accuracy_level"
"""What ONNX Runtime may do with activations in products with weights of few bits."""
FLOATS = "1"


@ENGINES.register("onnxruntime")
class OnnxRuntime(Engine):
    """model.onnx on the CPU, one thread."""

    target: ClassVar[str] = "onnx"

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError('this needs the package onnxruntime: pip install "bitexp[onnx]"') from None
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(ACCURACY, FLOATS)
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session: Any = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.input, *self.pasts = self.session.get_inputs()

    def outputs(self, inputs: Tensor) -> Tensor:
        found, *_ = self.run(inputs.contiguous().numpy(), self.empty(len(inputs)))
        return torch.from_numpy(found).float()

    def run(self, inputs: np.ndarray, pasts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The logits, and of a decoder the keys and values of all tokens so far."""
        given = {place.name: past for place, past in zip(self.pasts, pasts, strict=True)}
        found: list[np.ndarray] = self.session.run(None, {self.input.name: inputs, **given})
        return found

    def empty(self, texts: int) -> list[np.ndarray]:
        """The keys and values of no token, for some texts."""
        shapes = ((texts, place.shape[1], 0, place.shape[3]) for place in self.pasts)
        return [np.empty(shape, np.float32) for shape in shapes]

    def text(self) -> Text | None:
        return OnnxText(self) if self.pasts else None


class OnnxText:
    """See `Text`."""

    def __init__(self, engine: OnnxRuntime) -> None:
        self.engine, self.pasts = engine, engine.empty(1)

    def read(self, tokens: Sequence[int]) -> Tensor:
        logits, *self.pasts = self.engine.run(np.array([tokens], np.int64), self.pasts)
        return torch.from_numpy(logits[0, -1])
