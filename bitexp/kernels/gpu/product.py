"""The training forward on a GPU: int8 codes times int8 codes, with the scales in the same launch.

Compilers, traces and transforms see one opaque operation. Grouped convolutions, floats and tensors on the
CPU, where a model is built and probed before it moves, go the way of `reference`.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from bitexp.quant.backend import Backend, float_product
from bitexp.quant.modes import batched, followed, recorded
from bitexp.quant.spec import ConvArgs, LayerSpec

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def launchable(x: Tensor) -> bool:
    """Whether Triton can start kernels on x: on a GPU, or anywhere in its interpreter."""
    return x.is_cuda or INTERPRETED


@torch.library.custom_op("bitexp::int8_gemm", mutates_args=())
def int8_gemm_op(
    x: Tensor, w: Tensor, x_scale: Tensor | None, w_scale: Tensor | None, bias: Tensor | None, bias_kind: str
) -> Tensor:
    """`int8_gemm` where the operations of torch are followed."""
    from bitexp.kernels.gpu.int8 import int8_gemm

    return int8_gemm(x, w, x_scale, w_scale, bias, bias_kind)


@int8_gemm_op.register_fake
def _(
    x: Tensor, w: Tensor, x_scale: Tensor | None, w_scale: Tensor | None, bias: Tensor | None, bias_kind: str
) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0], dtype=torch.float32)


def int8_gemm(
    x: Tensor, w: Tensor, x_scale: Tensor | None, w_scale: Tensor | None, bias: Tensor | None, bias_kind: str
) -> Tensor:
    """Eagerly past the dispatcher, which takes longer than starting the kernel."""
    if followed():
        return int8_gemm_op(x, w, x_scale, w_scale, bias, bias_kind)
    from bitexp.kernels.gpu.int8 import int8_gemm as launch

    return launch(x, w, x_scale, w_scale, bias, bias_kind)


class Int8GpuBackend(Backend):
    """Training by torch's operators, products by the kernel, which also applies the scales."""

    def product(self, x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        if unfit(x, weight, spec.conv):
            return float_product(x, weight, spec)
        if spec.conv is None:
            return int8_gemm(x, weight, None, None, None, "none")
        patches = unfolded(x, weight.shape[-2:], spec.conv)
        return folded(int8_gemm(patches, weight.flatten(1), None, None, None, "none"))

    def scaled_product(
        self,
        x: Tensor,
        x_scale: Tensor | None,
        weight: Tensor,
        w_scale: Tensor,
        bias: Tensor | None,
        spec: LayerSpec,
    ) -> Tensor | None:
        if x_scale is None or w_scale.dim() == 2 or unfit(x, weight, spec.conv):
            return None
        if recorded(x_scale) or (bias is not None and recorded(bias)):
            return None  # torch's operators have gradients
        kind = "none" if bias is None else spec.bias
        if spec.conv is None:
            return int8_gemm(x, weight, x_scale.reshape(-1), w_scale, bias, kind)
        patches = unfolded(x, weight.shape[-2:], spec.conv)
        per_patch = x_scale.reshape(-1, 1, 1).expand(patches.shape[:3]).reshape(-1)
        return folded(int8_gemm(patches, weight.flatten(1), per_patch, w_scale, bias, kind))


def unfit(x: Tensor, weight: Tensor, conv: ConvArgs | None) -> bool:
    """Whether this is no product of int8 matrices on a GPU: floats, grouped convolutions, nothing, vmap."""
    if not launchable(x):
        return True
    grouped = conv is not None and conv[3] != 1
    return x.dtype != torch.int8 or grouped or x.numel() == 0 or batched(x) or batched(weight)


def unfolded(x: Tensor, size: tuple[int, ...], conv: ConvArgs) -> Tensor:
    """The patches of a convolution: int8 `[B, C, H, W] -> [B, H', W', C * h * w]`."""
    stride, padding, dilation, _ = conv
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for dim in (0, 1):
        x = x.unfold(2 + dim, (size[dim] - 1) * dilation[dim] + 1, stride[dim])
    x = x[..., :: dilation[0], :: dilation[1]]
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3)


def folded(y: Tensor) -> Tensor:
    """`[B, H', W', out] -> [B, out, H', W']`, in memory of its own: autograd forbids some views."""
    return y.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
