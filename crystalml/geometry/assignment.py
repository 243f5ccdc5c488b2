"""Equal atoms have no names: which of them goes where, and where a crystal lies on the torus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

if TYPE_CHECKING:
    from crystalml.crystal import CrystalBatch

_NEVER = 1e6  # square Angstrom: the cost of one element in the place of another


def nearest_way(x: CrystalBatch, frac: Tensor, rounds: int = 3) -> Tensor:
    """(n, 3) fractional displacements from `frac` (n, 3) to the crystals x in their likeliest arrangement.

    Atoms of one element may take each other's places and the crystal as a whole may move: the assignment of
    least squared distance in the cell of x, then the translation that suits it, in turns. Coordinates are
    compared by rounding (`geometry.torus.shortest` afterwards finds the shortest image of each).
    """
    index, slot = x.index, torch.arange(len(x.numbers), device=x.device) - x.offsets[x.index]
    size = int(x.num_atoms.max())

    def dense(values: Tensor, fill: float) -> Tensor:
        table = values.new_full((len(x), size, *values.shape[1:]), fill)
        table[index, slot] = values
        return table

    clean, noisy, species = dense(x.frac, 0.0), dense(frac, 0.0), dense(x.numbers, -1)
    differ = species[:, :, None] != species[:, None, :]
    cell, counts = x.lattice[:, None], x.num_atoms.tolist()
    way = torch.zeros_like(frac)
    for _ in range(rounds):
        delta = clean[:, None] - noisy[:, :, None]  # (b, N, N, 3): from noisy i to clean j
        delta = delta - delta.round()
        cost = (delta @ cell).square().sum(-1).masked_fill(differ, _NEVER).cpu().numpy()
        place = torch.arange(size).repeat(len(x), 1)
        for k, count in enumerate(counts):
            place[k, :count] = torch.from_numpy(linear_sum_assignment(cost[k, :count, :count])[1])
        chosen = place.to(x.device)[index, slot]
        way = delta[index, slot, chosen]
        mean = torch.zeros_like(x.lattice[:, 0]).index_add(0, index, way) / x.num_atoms[:, None].to(way.dtype)
        clean = clean - mean[:, None]
    return way
