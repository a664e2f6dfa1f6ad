"""Small decoders with packed files, as exporters take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitexp.deploy.description import Description
from bitexp.deploy.exporters.exporter import Packed
from bitexp.deploy.exporters.source import read_source
from bitexp.deploy.frozen import freeze
from bitexp.deploy.packed_file import save_packed
from tests.support.processes import Command
from tests.support.quantizers import make_quantizer

DECODER: dict[str, Any] = {
    "vocabulary": 256,
    "context": 64,
    "dim": 64,
    "depth": 1,
    "heads": 4,
    "kv_heads": 2,
    "mlp_ratio": 1.0,
    "activation": "silu",
    "sub_norm": False,
    "tied": False,
    "rope_base": 10000.0,
    "norm_eps": 1e-5,
    "init_std": None,
    "dropout": 0.0,
}
PORTABLE: dict[str, Any] = {"dim": 256, "tied": True}


def described(quantizer: str = "b158", changes: dict[str, Any] | None = None, **sizes: Any) -> Description:
    """A decoder of other sizes than `DECODER`, with another quantizer."""
    chosen = make_quantizer(quantizer, **(changes or {})).to_json()
    return Description("decoder", {**DECODER, **sizes}, chosen, exclude=["embed", "head"])


def packed(
    folder: Path,
    description: Description,
    preprocessing: dict[str, Any] | None = None,
    filled: dict[str, float] | None = None,
) -> Packed:
    """Writes a packed file of random weights, norms too, and reads it as exporters do.

    Args:
        filled: weights that are one number throughout.
    """
    description.preprocessing.update({"tokenizer": "bytes"} if preprocessing is None else preprocessing)
    torch.manual_seed(0)
    model = description.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        if description.model == "decoder":
            tied = description.model_arguments["tied"]
            model.get_parameter("embed.weight").mul_(5 if tied else 50)  # about as large as trained ones
        for name, value in (filled or {}).items():
            model.get_parameter(name).fill_(value)
    freeze(model.eval())
    folder.mkdir(parents=True, exist_ok=True)
    save_packed(folder / "packed.safetensors", model, description)
    return read_source(folder / "packed.safetensors")


def tokens(batch: int = 2, length: int = 48) -> Tensor:
    """Random ones, the same every time."""
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(1))


def exported_model(made: Path, folder: Path, command: Command) -> dict[str, str]:
    """The forms of others that `import` reads, of a short run."""
    (run,) = made.glob("lm_portable/*/result.json")
    for target in ("gguf", "transformers"):
        ended = command("export", str(run.parent), "--to", target, "--out", str(folder / target))
        assert ended.code == 0, ended.err
    return {"gguf": str(folder / "gguf" / "model.gguf"), "transformers": str(folder / "transformers")}
