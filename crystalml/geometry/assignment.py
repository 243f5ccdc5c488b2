"""Equal atoms have no names: which of them goes where, and where a crystal lies on the torus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
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
    clean, noisy, species = x.pad(x.frac), x.pad(frac), x.pad(x.numbers, -1)
    differ = species[:, :, None] != species[:, None, :]
    index, mask, cell = x.index, x.mask, x.lattice[:, None]
    size, counts = clean.shape[1], x.num_atoms.tolist()
    way = torch.zeros_like(frac)
    for _ in range(rounds):
        delta = clean[:, None] - noisy[:, :, None]  # (b, N, N, 3): from noisy i to clean j
        delta = delta - delta.round()
        cost = (delta @ cell).square().sum(-1).masked_fill(differ, _NEVER).cpu().numpy()
        place = np.tile(np.arange(size), (len(x), 1))
        for k, count in enumerate(counts):
            place[k, :count] = linear_sum_assignment(cost[k, :count, :count])[1]
        chosen = torch.from_numpy(place).to(x.device)[..., None, None]
        way = torch.take_along_dim(delta, chosen, 2)[:, :, 0][mask]
        mean = torch.zeros_like(x.lattice[:, 0]).index_add(0, index, way) / x.num_atoms[:, None].to(way.dtype)
        clean = clean - mean[:, None]
    return way
