"""Images `[B, C, H, W]` blurred, zoomed, moved and sampled elsewhere: what corruptions are made of."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothed(
    images: Tensor, sigma: float, border: Literal["nearest", "reflect"] = "nearest", reach: float = 4.0
) -> Tensor:
    """`images [..., H, W]` under a Gaussian that ends at `reach` deviations, by scipy.

    Beyond the border is the nearest pixel, or the image mirrored at its edge.
    """
    from scipy.ndimage import gaussian_filter

    sigmas = [0.0] * (images.dim() - 2) + [sigma, sigma]
    return torch.from_numpy(gaussian_filter(images.numpy(), sigmas, mode=border, truncate=reach))


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The middle of images, enlarged to their size; linear between pixels, by scipy."""
    from scipy.ndimage import zoom

    part = middle(images, [math.ceil(size / factor) for size in images.shape[-2:]])
    larger = torch.from_numpy(zoom(part.numpy(), (1, 1, factor, factor), order=1))
    return middle(larger, images.shape[-2:])


def middle(images: Tensor, sizes: torch.Size | list[int]) -> Tensor:
    """So many rows and columns of the middle."""
    top, left = ((whole - size) // 2 for whole, size in zip(images.shape[-2:], sizes, strict=True))
    return images[..., top : top + sizes[0], left : left + sizes[1]]


def moved(images: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Images as of a camera that moves, each in its direction `degrees [B]`: ImageMagick's motion blur.

    A mean over `2 radius + 1` whole pixels that lie nearest to the line, with weights of half a Gaussian;
    beyond the border is the nearest pixel. ImageMagick rounds the result to 8 bits, which is left out.
    """
    batch, channels, height, width = images.shape
    steps = torch.arange(2 * math.ceil(radius) + 1.0)
    weights = torch.exp(-steps.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    angles = degrees.double().deg2rad()
    right, down = ((steps * part[:, None] - 0.5).ceil().long() for part in (angles.cos(), angles.sin()))
    blurred = torch.zeros_like(images)
    image, channel = torch.arange(batch)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    for step, weight in enumerate(weights):
        rows = (torch.arange(height) + down[:, step, None]).clamp(0, height - 1)
        columns = (torch.arange(width) + right[:, step, None]).clamp(0, width - 1)
        blurred += weight * images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return blurred


def sampled(images: Tensor, columns: Tensor, rows: Tensor, mirror: Literal["edge", "pixel"]) -> Tensor:
    """Images at other places, columns and rows `[B, H, W]`; linear between pixels.

    Beyond the border the image is mirrored at its edge, or at the middle of its last pixels.
    """
    height, width = images.shape[-2:]
    corners = mirror == "pixel"
    grid = [
        2 * place / (size - 1) - 1 if corners else (2 * place + 1) / size - 1
        for place, size in ((columns, width), (rows, height))
    ]
    return F.grid_sample(
        images, torch.stack(grid, -1).to(images.dtype), padding_mode="reflection", align_corners=corners
    )


def pixels(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The columns and the rows of an image's pixels, each `[H, W]`."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return columns.float(), rows.float()


def between(low: float, high: float, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Uniform random numbers."""
    return low + (high - low) * torch.rand(shape, generator=draws)
