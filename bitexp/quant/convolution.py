"""Convolutions of whole numbers, exact whatever torch would choose for floats.

`F.conv2d` may go by Winograd's algorithm or by Fourier transforms (NNPACK without oneDNN, cuDNN, 3x3
depthwise on ARM), which round. The ways here multiply and add, nothing else. Codes of 8 bits are exact in
TF32 and bf16 too, so that the precision that is set for products of fp32 does not matter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.modes import followed, in_memory
from bitexp.quant.spec import ConvArgs

DIRECT = torch.backends.mkldnn.is_available()
"""Whether torch has oneDNN, whose convolution it calls direct."""


def exact_conv(x: Tensor, weight: Tensor, conv: ConvArgs) -> Tensor:
    """`[B, in, H, W]` or `[in, H, W]`, and `[out, in / groups, h, w]`, of whole numbers; the result likewise.

    Exact while sums stay among the integers of the dtype, which is fp32 or fp64.
    """
    if x.dim() == 3:
        return exact_conv(x[None], weight, conv)[0]
    stride, padding, dilation, groups = conv
    if DIRECT and x.is_cpu and x.dtype == torch.float32 and in_memory(x) and not followed():
        out: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, None, padding, stride, dilation, groups)
        return out
    return by_patches(x, weight, conv)


def by_patches(x: Tensor, weight: Tensor, conv: ConvArgs) -> Tensor:
    """A matrix product of all patches, on any device."""
    stride, padding, dilation, groups = conv
    patches = F.unfold(x, weight.shape[2:], dilation, padding, stride)
    kernels = weight.reshape(groups, len(weight) // groups, -1)
    y = kernels @ patches.unflatten(1, (groups, -1))
    height = (x.shape[2] + 2 * padding[0] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    return y.flatten(1, 2).unflatten(-1, (height, -1))
