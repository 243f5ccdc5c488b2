"""Moduli from strained copies: those of a calculator known otherwise, and exact to learn from."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.optimize import BFGS
from scipy.optimize import minimize_scalar
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.datasets.moduli import cubic_response
from crystalml.objectives.moduli import GPA, bulk_and_shear, disturbed, misfit

STRAIN = torch.tensor([0.01], dtype=torch.float64)


def _batch(atoms: Atoms) -> CrystalBatch:
    found = cubic_response(atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    assert found is not None
    return CrystalBatch(
        torch.as_tensor(atoms.numbers).long(), torch.as_tensor(atoms.get_scaled_positions()),
        torch.as_tensor(found.lattice)[None], torch.tensor([len(atoms)]),
        site_labels={"internal": torch.as_tensor(found.internal)},
    )  # fmt: skip


def _atoms(x: CrystalBatch, cell: np.ndarray, calculator) -> Atoms:
    return Atoms(
        x.numbers.numpy(), scaled_positions=x.frac.numpy(), cell=cell, pbc=True, calculator=calculator
    )


def _evaluated(x: CrystalBatch, calculator) -> tuple[Tensor, Tensor]:
    forces, stress = [], []
    for one in x.split():
        atoms = _atoms(one, one.lattice[0].numpy(), calculator)
        forces.append(torch.as_tensor(atoms.get_forces()))
        stress.append(torch.as_tensor(atoms.get_stress(voigt=False)))
    return torch.cat(forces), torch.stack(stress)


def _found(x: CrystalBatch, calculator) -> tuple[float, float]:
    k, g = bulk_and_shear(x, STRAIN, *_evaluated(disturbed(x, STRAIN), calculator))
    return float(k), float(g)


def _by_energies(x: CrystalBatch, calculator) -> tuple[float, float]:
    """K and G (Voigt-Reuss-Hill, Voigt where unstable), second differences of energies of relaxed atoms."""

    def energy(e: np.ndarray) -> float:
        cell = x.lattice[0].numpy() @ (np.eye(3) + e)
        atoms = _atoms(x, cell, calculator)
        BFGS(atoms, logfile=None).run(fmax=1e-6)
        return atoms.get_potential_energy()

    def curvature(e: np.ndarray) -> float:
        d = 2e-3
        return (energy(d * e) - 2 * energy(0 * e) + energy(-d * e)) / d**2 / float(x.volume) * GPA

    shear = np.zeros((3, 3))
    shear[1, 2] = shear[2, 1] = 0.5
    k, prime, c44 = curvature(np.eye(3)) / 9, curvature(np.diag([1, -1, 0])) / 4, curvature(shear)
    voigt = (2 * prime + 3 * c44) / 5
    reuss = 5 * prime * c44 / (2 * c44 + 3 * prime) if min(prime, c44) > 0 else voigt
    return k, (voigt + reuss) / 2


def _without_pressure(make: Callable[[float], Atoms], calculator, low: float, high: float) -> CrystalBatch:
    """Under pressure stresses and second differences of energies are not the same moduli."""

    def energy(a: float) -> float:
        atoms = make(a)
        atoms.calc = calculator
        return float(atoms.get_potential_energy())

    best = minimize_scalar(energy, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    return _batch(make(best.x))


def test_copper_by_emt() -> None:
    x = _without_pressure(lambda a: bulk("Cu", a=a), EMT(), 3.5, 3.7)
    assert _found(x, EMT()) == pytest.approx(_by_energies(x, EMT()), rel=0.03)


def test_atoms_that_answer_a_shear_soften_it() -> None:
    """Zincblende, where they do, against energies with relaxed atoms; held fixed, it is stiffer by far."""
    calculator = LennardJones(sigma=2.2, epsilon=0.3, rc=6.0, smooth=True)
    x = _without_pressure(lambda a: bulk("GaAs", "zincblende", a=a), calculator, 4.5, 6.0)
    k, g = _found(x, calculator)
    assert (k, g) == pytest.approx(_by_energies(x, calculator), rel=0.03)
    clamped = _found(x.replace(site_labels={"internal": torch.zeros_like(x.frac)}), calculator)
    assert clamped[0] == pytest.approx(k) and clamped[1] > 1.2 * g


def test_errors_are_shares_of_the_moduli() -> None:
    found, true = torch.tensor([45.0, 0.0, 2.0]), torch.tensor([90.0, 90.0, 1.0])
    torch.testing.assert_close(misfit(found, true), torch.tensor([-0.45, -0.9, 1 / 11]))


def test_unstable_crystals_have_moduli_and_gradients_all_the_same() -> None:
    x = _batch(bulk("Si"))
    forces = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    stress = torch.zeros(4, 3, 3, dtype=torch.float64)
    stress[0, 1, 2] = stress[0, 2, 1] = -0.01
    stress.requires_grad_()
    k, g = bulk_and_shear(x, STRAIN, forces, stress)
    (k.sum() + g.sum()).backward()
    assert float(g.detach()) < 0
    assert forces.grad is not None and forces.grad.isfinite().all()
    assert stress.grad is not None and stress.grad.isfinite().all()
