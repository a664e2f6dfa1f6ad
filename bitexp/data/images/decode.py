"""People's image files, brought to 8 bits of grey or colour as a viewer shows them on a white page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitexp.common.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

DECODING = 1  # raised when a file gives other pixels: runs on it are other runs then
MADE_OF_16_BITS = ("PNG", "PPM")  # formats that know no other numbers of more than 8 bits
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF


def decode(path: Path, channels: int) -> Image.Image:
    """An upright image of mode RGB (3 channels) or L (1); the first one of a file that holds several.

    Raises:
        UserError: naming the file, which is damaged, cannot be read, or does not say what is white.
    """
    from PIL import Image, ImageOps

    Image.init()  # all formats: while one thread loads them, another one would find its file unknown
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return flat(image, path).convert("RGB" if channels == 3 else "L")
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a damaged image may raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        raise UserError(f"{path} cannot be decoded ({error}). Repair or remove the file") from error


def flat(image: Image.Image, path: Path) -> Image.Image:
    """The image in 8 bits and without transparency: what is behind it is white."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(eight_bits(image, path))
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    return image if image.mode in ("1", "L") else image.convert("RGB")


def eight_bits(image: Image.Image, path: Path) -> np.ndarray:
    """Grey values of 16 bits or floats in 8 bits: the high byte, as Pillow does it for 16 bits of colour."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN as well
            raise UserError(
                f"{path} holds floats from {values.min():g} to {values.max():g}, which do not say what is "
                "white: save it with 8 or 16 bits, or with floats from 0 (black) to 1 (white)"
            )
        return np.round(values * 255).astype(np.uint8)
    if image.mode == "I" and image.format not in MADE_OF_16_BITS:
        raise UserError(
            f"{path} holds whole numbers of 32 bits or with signs, from {values.min()} to {values.max()}, "
            "which do not say what is white: save it with 8 or 16 bits"
        )
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow heeds it for 8 bits only
        values = 65535 - values
    see_through = image.info.get("transparency")
    values = values if see_through is None else np.where(values == see_through, 65535, values)
    return (values >> 8).astype(np.uint8)
