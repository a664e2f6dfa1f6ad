"""A finished run: its checkpoints, or the packed file where these were not kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.files import read_json
from bitexp.deploy.description import Description
from bitexp.deploy.load import finished_runs
from bitexp.deploy.packed_checks import TENSORS_AT_LEAST, TENSORS_FOR_EACH, Limited
from bitexp.deploy.packed_file import load_packed
from bitexp.deploy.sources.base import SOURCES, Source, Which, check_same, shapes_of, sound, told
from bitexp.deploy.sources.packed import dequantized_weights, tokenizer_of
from bitexp.kernels import Kernel, as_kernel
from bitexp.quant.layers import quantized_layers, set_backend
from bitexp.quant.options import LayerOptions
from bitexp.track.checkpoint_files import BEST, LAST, damage
from bitexp.track.folder import RunFolder

OF_PARTS = ("parts", "earlier")
"""What a quantized layer has below it that a plain one has not."""


@SOURCES.register("run")
class Run(Source):
    """The folder of a finished run, or one that holds a single finished run."""

    kind = "run"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if not (self.path / "config.yaml").is_file():
            runs = sorted(folder for folder, _ in finished_runs(self.path))
            if len(runs) != 1:
                shown = ", ".join(map(str, runs[:3])) + (" ..." if len(runs) > 3 else "")
                raise UserError(f"{text} holds {len(runs)} finished runs: name one of them ({shown})")
            self.path = runs[0]
        self.folder = RunFolder(self.path.absolute())
        result = self.folder.result()
        if result is None or result["status"] != "finished":
            state = "has not finished" if result is None else f"is {result['status']}"
            raise UserError(f"the run {text} {state}: its own command finishes it, then it can be used")

    @classmethod
    def recognizes(cls, text: str) -> bool:
        path = Path(text).expanduser()
        return path.is_dir() and ((path / "config.yaml").is_file() or any(finished_runs(path)))

    @property
    def files(self) -> Sequence[Path]:
        return [self.folder.model]

    @cached_property
    def identity(self) -> str:
        return self.folder.id

    @cached_property
    def description(self) -> Description:
        """What model it is of."""
        with told(self.text):
            if not isinstance(found := read_json(self.folder.model), dict):
                raise UserError(f"{self.folder.model} is missing or damaged")
            return Description.of(found)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": str(self.path),
            "identity": self.identity,
            "model": self.description.model,
            "model_arguments": self.description.model_arguments,
            "quantizer": self.description.quantizer,
        }

    @property
    def tokenizer(self) -> str | None:
        return tokenizer_of(self.description)

    def checkpoint(self, which: Which) -> Path | None:
        """The file of a checkpoint; None where the packed file alone has the tested weights."""
        if which == "best":
            names: Iterable[str] = (BEST, LAST)
            path = next((p for name in names if (p := self.folder.checkpoints / name).exists()), None)
        else:
            path = self.folder.checkpoints / LAST
            if not path.exists():
                raise UserError(
                    f"the run {self.text} has no last checkpoint any more (callbacks.checkpoint.keep); "
                    "weights=best takes what it was tested with"
                )
        if path is not None and (reason := damage(path)):
            raise UserError(f"{path} cannot be used: {reason}")
        return path

    def state(self, which: Which) -> dict[str, Tensor] | None:
        """All tensors of the model in a checkpoint, whose shapes are the model's; None without checkpoint."""
        if (path := self.checkpoint(which)) is None:
            return None
        with told(str(path)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            found = {
                name.removeprefix("model."): tensor
                for name, tensor in content["state_dict"].items()
                if name.startswith("model.")
            }
            check_same(shapes_of(self.blank(len(found)).state_dict()), shapes_of(found))
            return sound(found)

    def blank(self, tensors: int) -> nn.Module:
        """The model with its quantized layers, without memory; of a stranger's description as well."""
        with torch.device("meta"), Limited(TENSORS_AT_LEAST + TENSORS_FOR_EACH * tensors):
            return self.description.build()

    def weights(self, which: Which = "best", model: str | None = None) -> dict[str, Tensor]:
        if (state := self.state(which)) is None:
            with told(self.text):
                return sound(dequantized_weights(load_packed(self.folder.packed, "reference")[0]))
        apart = tuple(f"{name}.{own}." for name in self.options() for own in OF_PARTS)
        return {name: tensor for name, tensor in state.items() if not name.startswith(apart)}

    def learned(self, which: Which = "best") -> Mapping[str, Mapping[str, Tensor]]:
        state = self.state(which) or {}
        found: dict[str, dict[str, Tensor]] = {}
        for layer in self.options():
            own = {
                n.removeprefix(f"{layer}.parts."): t
                for n, t in state.items()
                if n.startswith(f"{layer}.parts.")
            }
            if own:
                found[layer] = own
        return found

    def options(self) -> Mapping[str, LayerOptions]:
        with told(self.text):
            layers = quantized_layers(self.blank(self.tensors))
        return {name: layer.options for name, layer in layers.items()}

    @cached_property
    def tensors(self) -> int:
        """How many tensors a checkpoint of it has."""
        if (path := self.checkpoint("best")) is None:
            return 0
        with told(str(path)):
            return len(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"])

    def model(self, which: Which = "best", kernel: Kernel | str = "auto") -> nn.Module:
        kernel = as_kernel(kernel)
        if (state := self.state(which)) is None:
            return load_packed(self.folder.packed, kernel)[0]
        with told(self.text):
            model = self.description.build()
            model.load_state_dict(state)
        set_backend(model, kernel.backend)
        return model.float().eval()
