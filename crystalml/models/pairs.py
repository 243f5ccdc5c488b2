"""Neighbour pairs as a padded table per atom, and smooth functions of their distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.neighbors import Neighbors, Topology

_TINY = 1e-12  # square Angstrom, so that the distance of coinciding atoms has a derivative


@dataclass(frozen=True)
class Pairs:
    """The K (or fewer) neighbours of each of n atoms; rows are filled up with pairs beyond every cutoff.

    j: (n, K) the neighbour; the atom itself where there is none. vector: (n, K, 3) x_j + shift - x_i and
    distance: (n, K), in Angstrom. The table, unlike a list of edges, turns sums over neighbours into batched
    matrix products: no (edges, channels, components) tensor is ever made.
    """

    j: Tensor
    vector: Tensor
    distance: Tensor

    @staticmethod
    def of(j: Tensor, vector: Tensor) -> Pairs:
        return Pairs(j, vector, (vector.square().sum(-1) + _TINY).sqrt())

    def gather(self, values: Tensor) -> Tensor:
        """(n, ...) per-atom values -> (n, K, ...) those of the neighbours."""
        return values.index_select(0, self.j.flatten()).unflatten(0, self.j.shape)


def tabulate(x: CrystalBatch, edges: Neighbors | Topology, beyond: float) -> Pairs:
    """Pairs of a full list sorted by i; only its topology (i, j, shift) is read, vectors come from x.

    So one list serves as long as no pair enters the cutoff, and gradients flow into frac and lattice.
    beyond: distance given to the filling pairs, in Angstrom.
    """
    atoms = x.numbers.shape[0]
    counts = torch.bincount(edges.i, minlength=atoms)
    width = max(int(counts.max()), 1)
    slot = torch.arange(len(edges.i), device=x.device) - (counts.cumsum(0) - counts)[edges.i]
    place = edges.i * width + slot
    own = torch.arange(atoms, device=x.device)
    j = own.repeat_interleave(width).index_copy(0, place, edges.j).unflatten(0, (atoms, width))
    shift = x.frac.new_zeros(atoms * width, 3).index_copy(0, place, edges.shift.to(x.dtype))
    filled = x.frac.new_zeros(atoms * width).index_fill(0, place, 1.0) > 0
    sender = x.frac.index_select(0, j.flatten()).unflatten(0, (atoms, width))
    delta = sender - x.frac[:, None] + shift.unflatten(0, (atoms, width))
    vector = delta @ x.lattice.index_select(0, x.index)
    far = vector.new_tensor([beyond, 0.0, 0.0])
    vector = torch.where(filled.unflatten(0, (atoms, width))[..., None], vector, far)
    return Pairs.of(j, vector)


def envelope(x: Tensor) -> Tensor:
    """1 - 28 x^6 + 48 x^7 - 21 x^8, 0 beyond x = 1, where slope and curvature vanish too (DimeNet, Eq. 8).

    Written as (1 - x)^3 (1 + 3 x + 6 x^2 + 10 x^3 + 15 x^4 + 21 x^5), whose terms do not cancel in float32.
    """
    x = x.clamp(max=1.0)
    return (1 - x) ** 3 * (1 + x * (3 + x * (6 + x * (10 + x * (15 + 21 * x)))))


def bessel(x: Tensor, count: int) -> Tensor:
    """sin(n pi x) / x for n = 1..count: (...,) -> (..., count) (DimeNet, Eq. 7). x is bounded from below."""
    n = torch.arange(1, count + 1, dtype=x.dtype, device=x.device)
    x = x[..., None]
    return torch.sin(torch.pi * n * x) * (0.5 / x)


def soft_floor(r: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """r above `high`, the constant `low` below `low`, twice differentiable and monotone between.

    low + (high - low) g(x), g = 6 x^3 - 8 x^4 + 3 x^5 with g' = x^2 (18 - 32 x + 15 x^2) > 0.
    """
    x = (r - low) / (high - low)
    y = x.clamp(0.0, 1.0)
    return torch.where(x >= 1, r, low + (high - low) * (y * y * y * (6 - y * (8 - 3 * y))))
