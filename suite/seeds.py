"""Random streams: one counter-based stream for each purpose, so that none disturbs another."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of run seed `seed`; equal arguments give equal seeds on every machine."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream `names`."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))
