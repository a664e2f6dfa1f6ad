"""Attention by torch's own function, in the precision in which that is fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, grouped: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over `[B, H, N, D]`; `grouped`: k and v have fewer heads than q.

    bf16 on the CPU is computed in fp32 and rounded at the end, since torch's function takes 2.4 times as long
    in bf16 (forwards and backwards, 64 images of 16 tokens and 4 heads; 2.7 times for 8 texts of 128 tokens;
    torch 2.13). Products and a softmax by themselves are as fast for 16 tokens and slower for 128.
    """
    if not (v.is_cpu and v.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
    with torch.autocast("cpu", enabled=False):
        mixed = attention(q.float(), k.float(), v.float(), mask, causal, grouped)
    return mixed.to(v.dtype)
