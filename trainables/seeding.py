"""Private random streams: every purpose draws from its own generator, never from global state."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose (``derive_seed(3, "poison-index")``); the same on every machine and process."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """CPU generator for one purpose. CPU on purpose: the draws are then the same whatever device trains."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
