"""An ONNX graph in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.engines.engine import ENGINES, Engine

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
        self.input = self.session.get_inputs()[0].name

    def outputs(self, inputs: Tensor) -> Tensor:
        (found,) = self.session.run(None, {self.input: inputs.contiguous().numpy()})
        return torch.from_numpy(found).float()
