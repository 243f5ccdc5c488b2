"""What properties ask of a potential, on untrained weights: the examples in small, as laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, surface
from ase.calculators.mixing import SumCalculator
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from crystalml.calculators.ase import DaoCalculator
from crystalml.convert import to_batch
from crystalml.models.heads import EnergyScale
from crystalml.models.model import ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import Predictor


@pytest.fixture(scope="module")
def calculator() -> DaoCalculator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = ModelConfig(PeriodicConfig(16, 2, 2, 4, 8, 8, 6, 5.0), noise=False, energy=EnergyScale())
        model = config.build().double().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
    return DaoCalculator(model, device="cpu", dtype="float64")


def salt() -> Atoms:
    return bulk("NaCl", "rocksalt", 5.2, cubic=True)


def test_nve_conserves_the_energy_to_second_order_in_the_time_step(calculator):
    start = salt()
    MaxwellBoltzmannDistribution(start, temperature_K=600, rng=np.random.default_rng(0))
    Stationary(start)
    errors = []
    for step in (2.0, 1.0, 0.5):
        atoms = start.copy()
        atoms.calc = calculator
        run = VelocityVerlet(atoms, timestep=step * units.fs)
        energies = [atoms.get_total_energy() for _ in run.irun(round(40 / step))]
        errors.append(np.abs(np.array(energies) - energies[0]).max())
    kinetic = 1.5 * units.kB * 600 * len(start)
    assert errors[0] < 0.01 * kinetic
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_pressure_is_the_slope_of_the_equation_of_state(calculator):
    cells = [bulk("NaCl", "rocksalt", a) for a in np.linspace(5.0, 5.5, 41)]
    out = Predictor(calculator.model)(to_batch(cells, dtype=torch.float64))
    volumes = np.array([cell.get_volume() for cell in cells])
    slope = np.gradient(out["energy"].numpy(), volumes)[1:-1]
    pressure = out["stress"].diagonal(dim1=1, dim2=2).mean(1).numpy()[1:-1]
    assert np.ptp(slope) > 1e-3
    np.testing.assert_allclose(pressure, slope, atol=0.01 * np.ptp(slope))


def test_phonons_of_a_batch_keep_translations_and_the_crystal(calculator):
    atoms = salt()
    cell = PhonopyAtoms(atoms.get_chemical_symbols(), cell=atoms.cell[:], positions=atoms.positions)
    phonon = Phonopy(cell, np.eye(3), primitive_matrix="F")
    phonon.generate_displacements(distance=0.01)
    cells = [
        Atoms(c.symbols, c.positions, cell=c.cell, pbc=True) for c in phonon.supercells_with_displacements
    ]
    batch = Predictor(calculator.model)(to_batch(cells, dtype=torch.float64))["forces"]
    phonon.forces = batch.unflatten(0, (len(cells), -1)).numpy()
    for moved, forces in zip(cells, phonon.forces, strict=True):
        moved.calc = calculator
        np.testing.assert_allclose(moved.get_forces(), forces, atol=1e-9)
    phonon.produce_force_constants()
    constants = phonon.force_constants
    largest = np.abs(constants).max()
    assert np.abs(constants.sum(1)).max() < 1e-3 * largest  # no force on a crystal moved as a whole
    assert np.abs(constants - constants.transpose(1, 0, 3, 2)).max() < 1e-2 * largest  # it is a Hessian
    frequencies = phonon.get_frequencies([0, 0, 0])
    assert np.abs(frequencies)[np.argsort(np.abs(frequencies))[:3]].max() < 0.05 * np.abs(frequencies).max()
    optical = frequencies[np.argsort(np.abs(frequencies))[3:]]
    assert np.ptp(optical) < 1e-3 * np.abs(optical).max()  # one threefold mode of a cubic site


def test_a_thick_slab_costs_two_surfaces(calculator):
    crystal = bulk("NaCl", "rocksalt", 5.2)
    crystal.calc = calculator
    per_atom = crystal.get_potential_energy() / 2
    excess = []
    for layers in (4, 5):
        slab = surface(salt(), (0, 0, 1), layers, periodic=False)
        slab.calc = calculator
        excess.append((slab.get_potential_energy() - len(slab) * per_atom) / (2 * slab.cell.areas()[2]))
    assert abs(excess[0]) > 1e-4
    assert excess[1] == pytest.approx(excess[0], rel=1e-6)  # beyond twice the view no layer knows both sides


@pytest.mark.slow  # matcalc imports much
def test_elastic_constants_of_a_cubic_crystal_are_three(calculator):
    matcalc = pytest.importorskip("matcalc", reason="needs pip install 'crystalml-dao[properties]'")
    elastic = matcalc.ElasticityCalc(
        calculator, relax_structure=False, norm_strains=(-0.002, 0.002), shear_strains=(-0.002, 0.002)
    )
    tensor = elastic.calc(salt())["elastic_tensor"].voigt
    c11, c12, c44 = tensor[0, 0], tensor[0, 1], tensor[3, 3]
    cubic = np.zeros((6, 6))
    cubic[:3, :3] = c12
    cubic[range(6), range(6)] = [c11] * 3 + [c44] * 3
    np.testing.assert_allclose(tensor, cubic, atol=0.01 * np.abs(tensor).max())


def test_dispersion_adds_up(calculator):
    module = pytest.importorskip(
        "torch_dftd.torch_dftd3_calculator", reason="needs pip install 'crystalml-dao[properties]'"
    )
    d3 = module.TorchDFTD3Calculator(
        xc="pbe", damping="bj", device="cpu", dtype=torch.float64, cutoff=12.0, cnthr=12.0
    )
    atoms = salt()
    atoms.rattle(0.05, seed=0)
    found = {}
    for name, calc in {"potential": calculator, "d3": d3, "sum": SumCalculator([calculator, d3])}.items():
        atoms.calc = calc
        found[name] = (atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())
    assert found["d3"][0] < -0.1  # dispersion binds
    for one, other, both in zip(*found.values(), strict=True):
        np.testing.assert_allclose(both, one + other, atol=1e-10)
