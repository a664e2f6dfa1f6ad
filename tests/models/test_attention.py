"""Attention of the models: torch's own, in fp32 where bf16 is slow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bitexp.models.attention import attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [4, 2])
def test_bf16_is_rounded_once_at_the_end(causal: bool, heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 4, 9, 16).bfloat16().requires_grad_()
    k, v = (torch.randn(3, heads, 9, 16).bfloat16().requires_grad_() for _ in range(2))
    leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*leaves, is_causal=causal, enable_gqa=heads < 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(q.float() if heads == 4 else q, k, v, causal=causal, grouped=heads < 4)
    assert torch.equal(mixed, expected.bfloat16())
    out_grad = torch.randn_like(mixed)
    grads = torch.autograd.grad(mixed, [q, k, v], out_grad)
    expected_grads = torch.autograd.grad(expected, leaves, out_grad.float())
    assert all(torch.equal(g, e.bfloat16()) for g, e in zip(grads, expected_grads, strict=True))


def test_fp32_is_torchs_own_to_the_bit() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 16)
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
