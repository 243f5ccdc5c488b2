"""Close pairs of all elements, so that no pair that the data lack becomes a hole."""

from __future__ import annotations

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.elements import covalent_radii

MAX_Z = 94  # heavier elements are in no data set
RANGE = (0.45, 0.7)  # in sums of covalent radii: where a network sees the pair and only repulsion is physical
MARGIN = 0.5  # eV/A that the repulsive force has to exceed


def random_dimers(count: int, like: Tensor, generator: torch.Generator | None) -> CrystalBatch:
    """Pairs of two random elements each, at a random close distance along z, in large boxes."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=like.device, dtype=like.dtype)

    numbers = (1 + uniform(count, 2) * MAX_Z).long().clamp(max=MAX_Z)
    radii = covalent_radii().to(like)[numbers].sum(-1)
    box = 30.0
    frac = like.new_zeros(count, 2, 3)
    frac[:, 1, 2] = radii * (RANGE[0] + (RANGE[1] - RANGE[0]) * uniform(count)) / box
    lattice = box * torch.eye(3, device=like.device, dtype=like.dtype).repeat(count, 1, 1)
    sizes = torch.full((count,), 2, device=like.device)
    return CrystalBatch(numbers.flatten(), frac.flatten(0, 1), lattice, sizes)


def attraction(forces: Tensor) -> Tensor:
    """mean log(1 + max(0, margin - F)) over `random_dimers`, F the force on the upper atom along z.

    Zero where all of them repel. forces: (2 * count, 3) in eV/A.
    """
    return torch.log1p((MARGIN - forces[1::2, 2]).relu()).mean()
