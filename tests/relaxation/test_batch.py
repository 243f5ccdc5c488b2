"""The batch goes where each crystal would have gone alone, which is where ASE's FIRE goes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from crystalml.batched_relax import BatchedFire, Relaxed, relax_batch
from crystalml.convert import to_atoms
from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.geometry.neighbors import neighbor_list
from crystalml.testing import assert_close_crystals, hexagonal, rand_crystals, rock_salt

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
    """The same potential for ASE."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        frac = torch.tensor(self.atoms.get_scaled_positions(wrap=False))
        cell = torch.tensor(self.atoms.cell.array)[None]
        numbers = torch.tensor(self.atoms.numbers, dtype=torch.long)
        out = Pairs()(CrystalBatch(numbers, frac, cell, torch.tensor([len(numbers)])))
        energy = out["energy"].item()
        stress = full_3x3_to_voigt_6_stress(out["stress"][0].numpy())
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": out["forces"].numpy(),
            "stress": stress,
        }


def start(count: int = 6) -> CrystalBatch:
    """Crystals without symmetry and of several sizes, at about the density of the minimum."""
    x = rand_crystals(3, count, max_atoms=6, min_distance=2.0)
    return x.replace(lattice=x.lattice * (12.0 / (x.volume / x.num_atoms))[:, None, None] ** (1 / 3))


def by_ase(crystal: CrystalBatch, fmax: float, cell: bool) -> tuple[Atoms, int]:
    atoms = to_atoms(crystal)[0]
    atoms.calc = OneByOne()
    optimizer = FIRE(FrechetCellFilter(atoms) if cell else atoms, logfile=None)
    optimizer.run(fmax=fmax, steps=2000)
    return atoms, optimizer.nsteps


def same(first: Relaxed, second: Relaxed, atol: float = 1e-8) -> None:
    assert (first.steps, first.converged) == (second.steps, second.converged)
    assert first.energy == pytest.approx(second.energy, abs=atol)
    assert_close_crystals(first.crystal, second.crystal, atol)


# --- the same as ASE --------------------------------------------------------------------------------------
def test_with_fixed_cells_every_step_is_that_of_ase():
    crystals = start()
    found = relax_batch(Pairs(), crystals, BatchedFire(fmax=1e-3, cell=False, max_steps=2000))
    for crystal, result in zip(crystals.split(), found, strict=True):
        atoms, steps = by_ase(crystal, 1e-3, cell=False)
        assert result.converged and result.steps == steps
        assert result.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        assert result.fmax == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), abs=1e-6)


def test_with_cells_the_minimum_is_that_of_ase():
    crystals = CrystalBatch.cat([rock_salt(), hexagonal(), start(2)[1]])
    g = torch.Generator().manual_seed(0)
    shaken = crystals.frac + 0.01 * torch.randn(crystals.frac.shape, generator=g, dtype=torch.float64)
    strain = torch.eye(3) + 0.03 * torch.randn(3, 3, 3, generator=g, dtype=torch.float64)
    crystals = crystals.replace(frac=shaken % 1, lattice=crystals.lattice @ strain)
    found = relax_batch(Pairs(), crystals, BatchedFire(fmax=1e-4, max_steps=3000))
    for crystal, result in zip(crystals.split(), found, strict=True):
        atoms, _ = by_ase(crystal, 1e-4, cell=True)
        assert result.converged
        assert result.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        assert float(result.crystal.volume) == pytest.approx(atoms.get_volume(), rel=1e-4)
        out = Pairs()(result.crystal)
        assert float(out["forces"].norm(dim=1).max()) < 1e-4 and float(out["stress"].abs().max()) < 1e-4


def test_a_known_minimum_is_found():
    crystals = start()
    for result in relax_batch(Springs(), crystals, BatchedFire(fmax=1e-6, max_steps=2000)):
        assert result.converged and result.energy < 1e-9
        torch.testing.assert_close(
            result.crystal.frac, torch.full_like(result.crystal.frac, 0.5), atol=1e-5, rtol=0
        )
        assert result.steps > 0


# --- the company --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("max_atoms", [1, 7, 12])
def test_the_company_of_a_crystal_changes_nothing(max_atoms):
    crystals = start()
    together = relax_batch(Pairs(), crystals, BatchedFire(fmax=0.01, max_steps=60))
    swapped = relax_batch(Pairs(), crystals, BatchedFire(fmax=0.01, max_steps=60, max_atoms=max_atoms))
    for first, second in zip(together, swapped, strict=True):
        same(first, second)


def test_finished_crystals_make_room_within_the_limit():
    crystals, potential = start(), Pairs()
    largest = int(crystals.num_atoms.max())
    fire = BatchedFire(fmax=0.05, max_steps=40, max_atoms=largest + 3)
    order = [place for place, _ in fire.run(potential, crystals)]
    assert sorted(order) == list(range(len(crystals)))
    assert max(potential.sizes) <= largest + 3
    assert sum(potential.sizes) == sum(
        (result.steps + 1) * len(result.crystal.numbers) for result in relax_batch(Pairs(), crystals, fire)
    )  # nothing is evaluated that is done


def test_results_come_as_they_are_done():
    done = BatchedFire(fmax=0.05, max_steps=300).run(Pairs(), CrystalBatch.cat([start(2)[1], rock_salt()]))
    steps = [result.steps for _, result in done]
    assert steps == sorted(steps)


# --- edges --------------------------------------------------------------------------------------------------
def test_giving_up_is_said():
    (result,) = relax_batch(Pairs(), start(2)[1], BatchedFire(fmax=1e-9, max_steps=3))
    assert not result.converged and result.steps == 3 and result.fmax > 1e-9
    (result,) = relax_batch(Pairs(), start(2)[1], BatchedFire(fmax=1e-9, max_steps=0))
    assert result.steps == 0
    assert_close_crystals(result.crystal, start(2)[1])


def test_labels_come_back_and_the_state_of_the_optimiser_does_not():
    x = start(3)
    x = x.replace(labels={"steps": torch.tensor([7.0, 8.0, 9.0])})
    for place, result in enumerate(relax_batch(Pairs(), x, BatchedFire(max_steps=2))):
        assert list(result.crystal.labels) == ["steps"] and not result.crystal.site_labels
        assert float(result.crystal.labels["steps"]) == 7.0 + place


def test_a_crystal_that_blows_up_ends_alone():
    def broken(x: CrystalBatch) -> Mapping[str, Tensor]:
        out = dict(Pairs()(x))
        out["energy"] = torch.where(x.num_atoms == 6, torch.nan, out["energy"])
        return out

    x = start(4)
    results = relax_batch(broken, x, BatchedFire(fmax=0.05, max_steps=300))
    alone = relax_batch(Pairs(), x, BatchedFire(fmax=0.05, max_steps=300))
    assert sorted(set(x.num_atoms.tolist()))[-1] == 6
    for count, result, sound in zip(x.num_atoms.tolist(), results, alone, strict=True):
        if count == 6:
            assert not result.converged and result.steps == 0
        else:
            same(result, sound)


def test_slabs_keep_their_cell_and_are_not_wrapped_across_the_vacuum():
    x = start(2)[1]
    lattice = x.lattice.clone()
    lattice[:, 2] *= 4
    frac = x.frac.clone()
    frac[:, 2] = (frac[:, 2] - frac[:, 2].min()) / 4 - 0.02
    slab = CrystalBatch(x.numbers, frac, lattice, x.num_atoms, {"pbc": torch.tensor([[True, True, False]])})
    (result,) = relax_batch(Pairs(), slab, BatchedFire(fmax=0.05, max_steps=500))
    assert result.converged
    torch.testing.assert_close(result.crystal.lattice, lattice)
    assert float(result.crystal.frac[:, 2].max() - result.crystal.frac[:, 2].min()) < 0.6


def test_no_crystals_and_bad_settings():
    assert relax_batch(Pairs(), []) == []
    with pytest.raises(InputError, match="fmax"):
        BatchedFire(fmax=0.0)
    with pytest.raises(InputError, match="item 0 is a batch of 3"):
        relax_batch(Pairs(), [start(3)])


def test_with_a_model(tiny_model):
    from crystalml.predict import Predictor

    predictor = Predictor(tiny_model(dtype=torch.float64))
    results = relax_batch(predictor, rand_crystals(0, 3), BatchedFire(max_steps=5))
    before = predictor(rand_crystals(0, 3))["energy"]
    assert all(result.energy <= float(e) for result, e in zip(results, before, strict=True))
