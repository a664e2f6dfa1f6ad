"""Images in bytes, as C code takes them: what a header says of them, and how it is read again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitexp.common.errors import UserError
from bitexp.deploy.exporters.c_values import number_text

NEAR = 0.01
"""How far from a whole number a pixel is by rounding."""


@dataclass(frozen=True)
class Pixels:
    """Images `[channels, height, width]` in bytes; a network sees (byte / white - mean) / deviation."""

    shape: tuple[int, int, int]
    white: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> Pixels | None:
        """Those of a packed file; None where it does not say how they are normalized."""
        if not {"channels", "size", "divide_by", "mean", "std"} <= preprocessing.keys():
            return None
        shape = (preprocessing["channels"], *preprocessing["size"])
        mean, deviation = tuple(preprocessing["mean"]), tuple(preprocessing["std"])
        return cls(shape, preprocessing["divide_by"], mean, deviation)

    @classmethod
    def read(cls, header: str) -> Pixels | None:
        """Those that `declared` wrote; None where there is nothing of them."""
        found = dict(re.findall(r"^#define MODEL_(\w+) (.+)$", header, re.MULTILINE))
        if "WHITE" not in found:
            return None
        mean, deviation = (
            tuple(float(number) for number in found[name].strip("{}").replace("f", "").split(","))
            for name in ("MEAN", "DEVIATION")
        )
        channels, height, width = (int(found[name]) for name in ("CHANNELS", "HEIGHT", "WIDTH"))
        return cls((channels, height, width), int(found["WHITE"]), mean, deviation)

    def declared(self) -> list[str]:
        """Lines of a header."""
        names = ("CHANNELS", "HEIGHT", "WIDTH")
        numbers = {"MEAN": self.mean, "DEVIATION": self.deviation}
        return [
            *(f"#define MODEL_{name} {size}" for name, size in zip(names, self.shape, strict=True)),
            f"#define MODEL_WHITE {self.white}",
            *(
                f"#define MODEL_{name} {{{', '.join(map(number_text, some))}}}"
                for name, some in numbers.items()
            ),
        ]

    @property
    def order(self) -> str:
        """How the bytes lie, in words."""
        channels, height, width = self.shape
        several = f"{channels} channels, one after the other, each " if channels > 1 else ""
        return f"{several}{height} rows of {width} bytes, from 0 (black) to {self.white}"

    @property
    def function(self) -> str:
        """What makes a pixel what the network sees, with the bits that it has in training."""
        channel = "0" if self.shape[0] == 1 else f"i / {self.shape[1] * self.shape[2]}"
        return (
            "/* A pixel as the network sees it. */\n"
            "static float pixel(const uint8_t *x, int i) {\n"
            "    static const float mean[] = MODEL_MEAN, deviation[] = MODEL_DEVIATION;\n"
            f"    return ((float)x[i] / MODEL_WHITE - mean[{channel}]) / deviation[{channel}];\n}}"
        )

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Means and deviations, fp32 `[channels, 1, 1]`."""
        return torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.deviation).view(-1, 1, 1)

    def normed(self, pixels: Tensor) -> Tensor:
        """Bytes `[B, channels, height, width]` as the network sees them, fp32."""
        mean, deviation = self.statistics
        return pixels.to(torch.float32).div_(self.white).sub_(mean).div_(deviation)

    def restored(self, images: Tensor) -> Tensor:
        """The bytes `[B, channels, height, width]` of images as the network sees them.

        Raises:
            UserError: they come of no bytes.
        """
        mean, deviation = self.statistics
        values = (images.view(-1, *self.shape) * deviation + mean) * self.white
        whole = values.round()
        if bool(((values - whole).abs() > NEAR).any() | (whole < 0).any() | (whole > 255).any()):
            raise UserError(
                "this C code takes images in bytes, and these inputs are none; export it with input=floats"
            )
        return whole.to(torch.uint8)
