"""A folder in transformers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.common.torchvision import import_torchvision
from bitexp.deploy.engines.engine import ENGINES, Engine, Text

NOISY = ("transformers", "torchao", "torch.utils._pytree")
"""They warn that there is no GPU, and of libraries for one."""


@ENGINES.register("transformers")
class TransformersEngine(Engine):
    """`AutoModelForCausalLM`, in fp32."""

    target: ClassVar[str] = "transformers"

    def __init__(self, folder: Path) -> None:
        try:
            for name in NOISY:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            import_torchvision()  # which transformers imports
            import accelerate  # noqa: F401  without it transformers loads no quantized model
            import transformers
        except ImportError:
            raise UserError(
                'this needs transformers and accelerate: pip install "bitexp[transformers]"'
            ) from None
        transformers.utils.logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32
            ).eval()

    def outputs(self, inputs: Tensor) -> Tensor:
        return self.run(inputs, use_cache=False).logits.float()

    def run(self, inputs: Tensor, **options: Any) -> Any:
        """A forward."""
        # its helpers are compiled at the first call, by a C++ compiler, otherwise
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return self.model(input_ids=inputs, **options)

    def text(self) -> Text:
        return TransformersText(self)


class TransformersText:
    """See `Text`."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.past = engine, None

    def read(self, tokens: Sequence[int]) -> Tensor:
        found = self.engine.run(
            torch.tensor([tokens]), past_key_values=self.past, use_cache=True, logits_to_keep=1
        )
        self.past = found.past_key_values
        logits: Tensor = found.logits[0, -1].float()
        return logits
