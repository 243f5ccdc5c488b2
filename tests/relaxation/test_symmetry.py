"""A kept symmetry is exact: found on the start, held by every step, unchanged at the end."""

from __future__ import annotations

import pytest
import spglib
import torch

from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.relaxation.batch import relax_batch
from crystalml.relaxation.coordinates import Vector, dot
from crystalml.relaxation.settings import OPTIMIZERS, RelaxSettings
from crystalml.relaxation.symmetry import Averages, symmetrized
from crystalml.testing import REFERENCE_CRYSTALS, alpha_quartz, random_rotation


def number(x: CrystalBatch, symprec: float) -> int:
    cell = (x.lattice[0].numpy(), x.frac.numpy(), x.numbers.numpy())
    return spglib.get_symmetry_dataset(cell, symprec=symprec).number


def noisy(x: CrystalBatch, size: float) -> CrystalBatch:
    """A rotated copy with atoms and cell vectors off by about `size` Angstrom."""
    g = torch.Generator().manual_seed(1)
    lattice = x.lattice @ random_rotation(2)
    off = size * torch.randn(x.frac.shape, generator=g, dtype=torch.float64)
    frac = x.frac + off @ torch.linalg.inv(lattice[0])
    bend = size / 4 * torch.randn(x.lattice.shape, generator=g, dtype=torch.float64)
    return x.replace(frac=frac - frac.floor(), lattice=lattice + bend)


def kick(x: CrystalBatch) -> dict[str, torch.Tensor]:
    """Forces and stress of no symmetry at all, and a pressure."""
    g = torch.Generator().manual_seed(0)
    push = 0.3 * torch.randn(100, 3, generator=g, dtype=torch.float64)[: len(x.numbers)]
    bend = 0.03 * torch.randn(x.lattice.shape, generator=g, dtype=torch.float64)
    energy = torch.zeros(len(x), dtype=torch.float64)
    return {"energy": energy, "forces": push, "stress": 0.5 * (bend + bend.mT) + 0.03 * torch.eye(3)}


@pytest.mark.parametrize("name", REFERENCE_CRYSTALS)
def test_a_noisy_crystal_is_moved_onto_its_symmetry_by_little(name):
    clean = REFERENCE_CRYSTALS[name]()
    x = noisy(clean, 0.004)
    fixed, operations = symmetrized(x, 0.05)
    assert number(fixed, 1e-8) == number(clean, 1e-5)
    moved = fixed.frac - x.frac
    moved = (moved - moved.round()) @ x.lattice[0]
    assert float(moved.norm(dim=1).max()) < 0.03 and float((fixed.lattice - x.lattice).abs().max()) < 0.03
    again, _ = symmetrized(fixed, 1e-6)
    torch.testing.assert_close(again.lattice, fixed.lattice, atol=1e-10, rtol=0)
    product = operations.rotation @ operations.rotation.mT
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64).expand_as(product))


def test_averaging_is_a_projection_that_takes_nothing_from_symmetric_vectors():
    parts = [symmetrized(make(), 1e-3) for make in REFERENCE_CRYSTALS.values()]
    x = CrystalBatch.cat([one for one, _ in parts])
    average = Averages(x, [operations for _, operations in parts])
    v, w = (Vector(torch.randn(x.frac.shape).double(), torch.randn(x.lattice.shape).double()) for _ in "vw")
    once = average(x, v)
    twice = average(x, once)
    torch.testing.assert_close(once.atoms, twice.atoms, atol=1e-6, rtol=0)
    torch.testing.assert_close(once.cell, twice.cell, atol=1e-6, rtol=0)
    torch.testing.assert_close(dot(x, average(x, v), w), dot(x, v, average(x, w)))  # self-adjoint
    cubic = once.cell[0]  # of rock salt: a stress can only be a pressure
    torch.testing.assert_close(cubic, cubic.diagonal().mean() * torch.eye(3).double(), atol=1e-6, rtol=0)
    assert float(once.atoms[:2].abs().max()) < 1e-9  # and no force on its atoms
    assert float(once.atoms[-9:].abs().max()) > 0.01  # quartz leaves its atoms free directions


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", REFERENCE_CRYSTALS.values(), ids=REFERENCE_CRYSTALS)
def test_the_group_after_is_the_group_before_under_forces_without_symmetry(make, optimizer):
    x = noisy(make(), 0.001)
    (free,) = relax_batch(kick, x, RelaxSettings(optimizer=optimizer, max_steps=12))
    (kept,) = relax_batch(kick, x, RelaxSettings(optimizer=optimizer, max_steps=12, fix_symmetry=True))
    assert number(free.crystal, 0.01) < number(make(), 0.01)
    assert number(kept.crystal, 1e-6) == number(make(), 0.01)
    assert abs(float(kept.crystal.volume / x.volume) - 1) > 1e-3  # it did move


def test_free_parameters_relax_to_the_minimum_of_the_group(toys):
    x = alpha_quartz()
    x = x.replace(lattice=x.lattice * 1.02)
    settings = RelaxSettings(fmax=1e-3, max_steps=2000, fix_symmetry=True)
    (kept,) = relax_batch(toys.Pairs(), x, settings)
    assert kept.converged and number(kept.crystal, 1e-5) == 154
    out = toys.Pairs()(kept.crystal)
    assert float(out["forces"].norm(dim=1).max()) < 2e-3  # the potential has the symmetry: nothing is hidden


def test_two_crystals_keep_their_own_groups_in_one_batch(toys):
    x = [noisy(REFERENCE_CRYSTALS[name](), 0.001) for name in ("perovskite", "hexagonal", "rock salt")]
    settings = RelaxSettings(fmax=0.01, max_steps=200, fix_symmetry=True)
    results = relax_batch(toys.Pairs(), x, settings)
    assert [number(result.crystal, 1e-5) for result in results] == [221, 194, 225]


def test_a_symprec_that_confuses_atoms_is_refused():
    with pytest.raises(InputError, match="symprec"):
        symmetrized(alpha_quartz(), 3.0)
