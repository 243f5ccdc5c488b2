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

from crystalml.crystal import EV_PER_A3, CrystalBatch
from crystalml.objectives.moduli import (
    bulk_and_shear,
    disturbed,
    elastic_tensor,
    misfit,
    unit_strains,
)

STRAIN = torch.tensor([0.01], dtype=torch.float64)


def _batch(atoms: Atoms) -> CrystalBatch:
    return CrystalBatch(
        torch.as_tensor(atoms.numbers).long(), torch.as_tensor(atoms.get_scaled_positions()),
        torch.as_tensor(atoms.cell.array.copy())[None], torch.tensor([len(atoms)]),
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


def _tensor(x: CrystalBatch, calculator) -> Tensor:
    return elastic_tensor(x, STRAIN, *_evaluated(disturbed(x, STRAIN), calculator))


def _found(x: CrystalBatch, calculator) -> tuple[float, float]:
    k, g = bulk_and_shear(_tensor(x, calculator))
    return float(k), float(g)


def _with_response(x: CrystalBatch, calculator, size: float = 2e-3) -> CrystalBatch:
    """Where atoms go when they are relaxed in strained cells."""
    ways = []
    for strain in unit_strains(x.lattice).numpy():
        ends = []
        for sign in (1, -1):
            atoms = _atoms(x, x.lattice[0].numpy() @ (np.eye(3) + sign * size * strain), calculator)
            start = atoms.positions.copy()
            BFGS(atoms, logfile=None).run(fmax=1e-6)
            moved = atoms.positions - start
            ends.append(moved - moved.mean(0))
        ways.append((ends[0] - ends[1]) / (2 * size))
    return x.replace(site_labels={"response": torch.as_tensor(np.stack(ways, 1))})


def _by_energies(x: CrystalBatch, calculator) -> tuple[float, float]:
    """K and G (Voigt-Reuss-Hill, Voigt where unstable), second differences of energies of relaxed atoms."""

    def energy(e: np.ndarray) -> float:
        cell = x.lattice[0].numpy() @ (np.eye(3) + e)
        atoms = _atoms(x, cell, calculator)
        BFGS(atoms, logfile=None).run(fmax=1e-6)
        return atoms.get_potential_energy()

    def curvature(e: np.ndarray) -> float:
        d = 2e-3
        return (energy(d * e) - 2 * energy(0 * e) + energy(-d * e)) / d**2 / float(x.volume) * EV_PER_A3

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
    moving = _with_response(x, calculator)
    k, g = _found(moving, calculator)
    assert (k, g) == pytest.approx(_by_energies(x, calculator), rel=0.03)
    clamped = _found(x, calculator)
    assert clamped[0] == pytest.approx(k) and clamped[1] > 1.2 * g


def test_an_error_of_the_response_enters_squared() -> None:
    calculator = LennardJones(sigma=2.2, epsilon=0.3, rc=6.0, smooth=True)
    x = _without_pressure(lambda a: bulk("GaAs", "zincblende", a=a), calculator, 4.5, 6.0)
    right = _with_response(x, calculator).site_labels["response"]
    c44 = [
        float(_tensor(x.replace(site_labels={"response": scale * right}), calculator)[0, 3, 3])
        for scale in (1.0, 0.9, 1.1, 0.8)
    ]
    assert c44[0] == min(c44)
    near, far = c44[1] - c44[0], c44[3] - c44[0]
    assert c44[2] - c44[0] == pytest.approx(near, rel=0.1) and far == pytest.approx(4 * near, rel=0.1)


def test_a_tensor_turns_with_its_crystal() -> None:
    """K and G do not depend on how the crystal stands; C of copper has a cube's symmetry."""
    x = _without_pressure(lambda a: bulk("Cu", a=a), EMT(), 3.5, 3.7)
    c = _tensor(x, EMT())[0]
    assert float(c[0, 0]) == pytest.approx(float(c[2, 2]), rel=1e-3) and float(c[0, 3]) == pytest.approx(
        0, abs=0.5
    )
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    assert _found(x.replace(lattice=x.lattice @ q), EMT()) == pytest.approx(_found(x, EMT()), rel=5e-3)


def test_errors_are_shares_of_the_moduli() -> None:
    found, true = torch.tensor([45.0, 0.0, 2.0]), torch.tensor([90.0, 90.0, 1.0])
    torch.testing.assert_close(misfit(found, true), torch.tensor([-0.45, -0.9, 1 / 11]))


def test_unstable_crystals_have_voigts_moduli_and_gradients_all_the_same() -> None:
    c = torch.diag(torch.tensor([100.0, 100, 100, -20, 50, 50]))[None].requires_grad_()
    k, g = bulk_and_shear(c)
    (k.sum() + g.sum()).backward()
    assert float(k.detach()) == pytest.approx(100 / 3)
    assert float(g.detach()) == pytest.approx((300 + 3 * 80) / 15)
    assert c.grad is not None and c.grad.isfinite().all()
    broken = torch.stack([torch.full((6, 6), float("nan")), torch.diag(torch.full((6,), 100.0))])
    k, _ = bulk_and_shear(broken)  # of a step that will be skipped; the other crystal keeps its own
    assert k.isnan().tolist() == [True, False]


def test_voigt_reuss_hill_of_an_isotropic_solid_are_its_own() -> None:
    k, g = 90.0, 35.0
    c = torch.diag(torch.tensor([2 * g] * 3 + [g] * 3))
    c[:3, :3] += k - 2 * g / 3
    assert [float(v) for v in bulk_and_shear(c[None])] == pytest.approx([k, g])
