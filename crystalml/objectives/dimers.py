"""Close pairs of all elements, so that no pair that the data lack becomes a hole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.elements import covalent_radii
from crystalml.geometry.neighbors import Neighbors
from crystalml.models.heads import EnergyScale

MAX_Z = 94  # heavier elements are in no data set
RANGE = (0.45, 0.7)  # in sums of covalent radii: where a network sees the pair and only repulsion is physical
MARGIN = 0.5  # eV/A that the repulsive force has to exceed


def random_dimers(
    count: int, like: Tensor, generator: torch.Generator | None
) -> tuple[CrystalBatch, Neighbors]:
    """Pairs of two random elements each, at a random close distance, along z; and their neighbours."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=like.device, dtype=like.dtype)

    numbers = (1 + uniform(count, 2) * MAX_Z).long().clamp(max=MAX_Z)
    radii = covalent_radii().to(like)[numbers].sum(-1)
    box = 30.0
    frac = like.new_zeros(count, 2, 3)
    frac[:, 1, 2] = radii * (RANGE[0] + (RANGE[1] - RANGE[0]) * uniform(count)) / box
    lattice = box * torch.eye(3, device=like.device, dtype=like.dtype).repeat(count, 1, 1)
    sizes = torch.full((count,), 2, device=like.device)
    i = torch.arange(2 * count, device=like.device)
    j = i + 1 - 2 * (i % 2)
    nothing = like.new_zeros(2 * count)  # a potential reads the topology of a list only
    edges = Neighbors(i, j, nothing[:, None].expand(-1, 3).long(), nothing[:, None].expand(-1, 3), nothing)
    return CrystalBatch(numbers.flatten(), frac.flatten(0, 1), lattice, sizes), edges


def attraction(
    model: nn.Module, count: int, scale: EnergyScale, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """mean log(1 + max(0, dE/dr + margin)) over random close pairs: zero where all of them repel."""
    with torch.enable_grad():
        x, edges = random_dimers(count, like, generator)
        distance = (x.frac[1::2, 2] * 30.0).clone().requires_grad_()
        height = torch.stack([torch.zeros_like(distance), distance], -1).flatten() / 30.0
        frac = torch.stack([torch.zeros_like(height), torch.zeros_like(height), height], -1)
        energy = 2 * scale.to_physical(model(x.replace(frac=frac), None, edges).energy)
        (slope,) = torch.autograd.grad(energy.sum(), distance, create_graph=True)
    return torch.log1p((slope + MARGIN).relu()).mean()
