"""Potentials whose minima are known, for batches and for ASE, and crystals to start from."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.neighbors import neighbor_list
from crystalml.relaxation.batch import relax_batch
from crystalml.relaxation.settings import RelaxSettings
from crystalml.testing import hexagonal, rand_crystals

CUTOFF = 6.0


class Pairs:
    """A 12-6 potential with its minimum at 2.6 A, brought smoothly to zero at the cutoff."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x: CrystalBatch) -> Mapping[str, Tensor]:
        self.sizes.append(len(x.numbers))
        frac = x.frac.clone().requires_grad_()
        strain = torch.zeros_like(x.lattice).requires_grad_()
        lattice = x.lattice + x.lattice @ (0.5 * (strain + strain.transpose(1, 2)))
        moved = x.replace(frac=frac, lattice=lattice)
        pairs = neighbor_list(moved, CUTOFF)
        s = (2.6 / pairs.distance) ** 6
        phi = 0.3 * (s * s - 2 * s) * (1 - (pairs.distance / CUTOFF) ** 2) ** 3
        energy = x.lattice.new_zeros(len(x)).index_add(0, x.index[pairs.i], 0.5 * phi)
        d_frac, d_strain = torch.autograd.grad(energy.sum(), (frac, strain))
        forces = -torch.linalg.solve(x.lattice[x.index], d_frac[..., None]).squeeze(-1)
        return {"energy": energy, "forces": forces, "stress": d_strain / x.volume[:, None, None]}


class Springs:
    """Every atom on a spring to its own place (Cartesian), a known minimum; no cell."""

    def __call__(self, x: CrystalBatch) -> Mapping[str, Tensor]:
        shift = torch.einsum("ni,nij->nj", x.frac - 0.5, x.lattice[x.index])
        energy = x.lattice.new_zeros(len(x)).index_add(0, x.index, (shift**2).sum(1))
        return {"energy": energy, "forces": -2 * shift, "stress": torch.zeros_like(x.lattice)}


class OneByOne(Calculator):
    """`Pairs` for ASE."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        frac = torch.tensor(self.atoms.get_scaled_positions(wrap=False))
        cell = torch.tensor(self.atoms.cell.array)[None]
        numbers = torch.tensor(self.atoms.numbers, dtype=torch.long)
        out = Pairs()(CrystalBatch(numbers, frac, cell, torch.tensor([len(numbers)])))
        energy = out["energy"].item()
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": out["forces"].numpy(),
            "stress": full_3x3_to_voigt_6_stress(out["stress"][0].numpy()),
        }


def start(count: int = 6) -> CrystalBatch:
    """Crystals without symmetry and of several sizes, at about the density of the minimum."""
    x = rand_crystals(3, count, max_atoms=6, min_distance=2.0)
    return x.replace(lattice=x.lattice * (12.0 / (x.volume / x.num_atoms))[:, None, None] ** (1 / 3))


def settled() -> CrystalBatch:
    """Minima of `Pairs`, each of another shape and size."""
    settings = RelaxSettings(fmax=1e-3, max_steps=2000, optimizer="fire")
    parts = [hexagonal(), *start(3).split()]
    found = [result.crystal for result in relax_batch(Pairs(), parts, settings)]
    return CrystalBatch.cat(found)


def shaken(x: CrystalBatch, rattle: float = 0.05, strain: float = 0.02) -> CrystalBatch:
    """A copy with random displacements and strains (standard deviation of the entries; Angstrom)."""
    g = torch.Generator().manual_seed(0)
    move = rattle * torch.randn(x.frac.shape, generator=g, dtype=torch.float64)
    frac = x.frac + torch.einsum("ni,nij->nj", move, torch.linalg.inv(x.lattice)[x.index])
    bend = strain * torch.randn(x.lattice.shape, generator=g, dtype=torch.float64)
    return x.replace(frac=frac % 1, lattice=x.lattice @ (torch.eye(3) + 0.5 * (bend + bend.mT)))


@pytest.fixture(scope="session")
def minima() -> CrystalBatch:
    return settled()


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    return SimpleNamespace(Pairs=Pairs, Springs=Springs, OneByOne=OneByOne, start=start, shaken=shaken)
