"""Counter-based random numbers: sample i draws the same numbers whatever else is in the batch.

A stateful generator hands out numbers in batch order, so a sample would depend on its neighbours.
Here every number is a hash of (seed of the sample, name of the draw, position), evaluated in parallel.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def stable_seed(*key: object) -> int:
    """63 bits from what a sample is called: the same in every batch, on every machine."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, where >> is arithmetic


def _hash(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, wrapping on overflow."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


class Draws(Protocol):
    """The random numbers of a batch, by name of the draw: `SampleNoise`, or what wraps it."""

    def atom_normal(self, draw: int, /) -> Tensor: ...
    def atom_uniform(self, draw: int, /) -> Tensor: ...
    def lattice_normal(self, draw: int, /) -> Tensor: ...


@dataclass(frozen=True)
class SampleNoise:
    """Noise for a batch of crystals: seeds (b,) int64, num_atoms (b,)."""

    seeds: Tensor
    num_atoms: Tensor

    def _atom_keys(self, draw: int) -> Tensor:
        keys = self._crystal_keys(draw)
        index = torch.arange(len(keys), device=keys.device).repeat_interleave(self.num_atoms)
        start = (self.num_atoms.cumsum(0) - self.num_atoms)[index]
        within = torch.arange(index.shape[0], device=keys.device) - start
        return _hash(keys[index] + (within + 1) * _GOLDEN)

    def _crystal_keys(self, draw: int) -> Tensor:
        return _hash(_hash(self.seeds * _GOLDEN + 1) + draw * 2 + 1)

    @staticmethod
    def _uniform(keys: Tensor, count: int) -> Tensor:
        """(k,) keys -> (k, count) float64 in (0, 1)."""
        counter = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
        return (_shift(_hash(keys[:, None] + counter), 11).double() + 0.5) * 2.0**-53

    @classmethod
    def _normal(cls, keys: Tensor, count: int) -> Tensor:
        """Box-Muller on two uniforms a number."""
        u, v = cls._uniform(keys, 2 * count).chunk(2, -1)
        return (-2 * u.log()).sqrt() * (2 * math.pi * v).cos()

    def atom_normal(self, draw: int) -> Tensor:
        """(n, 3) standard normal numbers, float64."""
        return self._normal(self._atom_keys(draw), 3)

    def atom_uniform(self, draw: int) -> Tensor:
        """(n, 3) uniform numbers in (0, 1), float64."""
        return self._uniform(self._atom_keys(draw), 3)

    def lattice_normal(self, draw: int) -> Tensor:
        """(b, 3, 3) standard normal numbers, float64."""
        return self._normal(self._crystal_keys(draw), 9).unflatten(-1, (3, 3))
