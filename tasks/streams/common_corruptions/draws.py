"""Random numbers that depend on (image, corruption, severity) and nothing else: hashes of a counter, for many images.

Every number is the hash of its position under a 64-bit key of its image; a *slot* tells apart the several fields of
numbers that one corruption needs. All arithmetic is on integers modulo 2^32 or 2^64, so that the bits are equal on
every device and in every batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SEED = 20190306
SLOTS = 16
"""Most fields of numbers one corruption may draw."""


class Draws:
    """The random numbers of the images `ids` (B,) under the corruption number `corruption` at `severity`."""

    def __init__(self, corruption: int, severity: int, ids: Tensor) -> None:
        self._salt = SEED + 256 * corruption + SLOTS * severity
        self._ids = ids.long()

    def part(self, start: int, stop: int) -> Draws:
        """The same numbers, for the images from `start` to before `stop` only."""
        part = Draws.__new__(Draws)
        part._salt, part._ids = self._salt, self._ids[start:stop]
        return part

    def bits(self, slot: int, *shape: int) -> Tensor:
        """32 independent bits for each position; int32 (B, *shape)."""
        count = 1
        for side in shape:
            count *= side
        key = _mix64(self._ids ^ _salted(self._salt + slot))
        low, high = key.to(torch.int32)[:, None], (key >> 32).to(torch.int32)[:, None]
        h = _counter(count, key.device) + low
        h ^= (h >> 16) & 0xFFFF
        h *= 0x7FEB352D
        h ^= (h >> 15) & 0x1FFFF
        h += high
        h *= _signed(0x846CA68B, 32)
        h ^= (h >> 16) & 0xFFFF
        return h.reshape(-1, *shape)

    def words(self, slot: int, *shape: int) -> Tensor:
        """Independent numbers from 0 to 65535, two from each hash; int32 (B, *shape), an even number of positions."""
        *leading, last = shape
        bits = self.bits(slot, *leading, last // 2)
        words = bits.new_empty(*bits.shape[:-1], last)
        torch.bitwise_and(bits, 0xFFFF, out=words[..., : last // 2])
        torch.bitwise_and(bits >> 16, 0xFFFF, out=words[..., last // 2 :])
        return words

    def uniform(self, slot: int, *shape: int) -> Tensor:
        """Independent numbers in (0, 1), centred in 2^24 equal cells; float32 (B, *shape)."""
        cell = (self.bits(slot, *shape) >> 8) & 0xFFFFFF
        return cell.to(torch.float32).add_(0.5).mul_(2.0**-24)

    def normal(self, slot: int, *shape: int) -> Tensor:
        """Independent standard normal numbers, the centres of 2^16 cells of equal mass; float32 (B, *shape)."""
        words = self.words(slot, *shape)
        return quantiles(words.device).index_select(0, words.reshape(-1)).reshape(words.shape)

    def below(self, slot: int, bound: int, *shape: int) -> Tensor:
        """Independent whole numbers from 0 to before `bound` (at most 2^16, biased by at most 2^-16); int64."""
        scaled: Tensor = ((self.bits(slot, *shape).long() & 0xFFFFFFFF) * bound) >> 32
        return scaled


@lru_cache(maxsize=2)
def quantiles(device: torch.device) -> Tensor:
    """The normal quantiles at (k + 1/2) / 2^16, float32 (65536,)."""
    centres = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    table: Tensor = torch.special.ndtri(centres)
    return table.to(device, torch.float32)


@lru_cache(maxsize=4)
def _counter(count: int, device: torch.device) -> Tensor:
    """Positions times an odd constant, modulo 2^32: int32 (1, count)."""
    position = torch.arange(count, dtype=torch.int32, device=device)
    counter: Tensor = (position * _signed(0x9E3779B1, 32))[None]
    return counter


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _salted(salt: int) -> int:
    """`_mix64` of one number, as a signed one."""
    mask = (1 << 64) - 1
    salt = (salt ^ (salt >> 30)) * 0xBF58476D1CE4E5B9 & mask
    salt = (salt ^ (salt >> 27)) * 0x94D049BB133111EB & mask
    return _signed(salt ^ (salt >> 31), 64)


def _mix64(z: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014) on int64."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9, 64)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB, 64)
    return z ^ ((z >> 31) & ((1 << 33) - 1))
