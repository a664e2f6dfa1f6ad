"""Randomness without a state to save: a draw follows from its purpose, a seed and an epoch."""

from __future__ import annotations

import hashlib

import torch


def generator(purpose: str, seed: int, epoch: int = 0) -> torch.Generator:
    """A fresh generator; other purposes, seeds or epochs give unrelated streams."""
    digest = hashlib.blake2b(f"{purpose}/{seed}/{epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any values with a stable `repr`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
