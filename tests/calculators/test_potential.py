"""The potential behind ASE's interface: bulk, slab, wire, molecule and atom, in any cell."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, make_supercell, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.io import read, write
from ase.optimize import BFGS

from crystalml.calculators.ase import DaoCalculator
from crystalml.convert import to_atoms, to_batch
from crystalml.errors import CellError, UnsupportedError
from crystalml.models.error_bar import ErrorBar, with_error_bar
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import Predictor
from crystalml.testing import rand_crystals
from crystalml.training.checkpoint import load_model_file, save_model


@pytest.fixture(scope="module")
def model() -> CrystalModel:
    torch.manual_seed(0)
    config = ModelConfig(
        PeriodicConfig(16, 2, 2, 4, 8, 8, 6, 5.0), noise=False, energy=EnergyScale(-1.0, 2.0)
    )
    built = config.build().double().eval()
    with torch.no_grad():
        for weight in built.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return built


def _systems() -> dict[str, Atoms]:
    wire = Atoms("Na2", [[0, 0, 0], [0, 0, 2.9]], cell=[0, 0, 6.1], pbc=[False, False, True])
    return {
        "bulk": bulk("NaCl", "rocksalt", 5.64),
        "slab": fcc111("Al", (1, 1, 3), vacuum=6.0),
        "slab without a third vector": fcc111("Al", (1, 1, 3)),
        "wire": wire,
        "molecule": molecule("CH3OH"),
    }


@pytest.mark.parametrize("name", _systems())
def test_forces_and_stress_are_finite_differences(model: CrystalModel, name: str) -> None:
    atoms = _systems()[name]
    atoms.rattle(0.05, seed=1)
    atoms.calc = DaoCalculator(model, dtype="float64")
    atoms.get_potential_energy()
    results = copy.deepcopy(atoms.calc.results)
    assert results["energies"].sum() == pytest.approx(results["energy"])
    np.testing.assert_allclose(results["forces"], calculate_numerical_forces(atoms, 1e-4), atol=1e-5)
    assert ("stress" in results) == (atoms.cell.rank == 3)
    if "stress" in results:
        stress = calculate_numerical_stress(atoms, 1e-5, force_consistent=False)
        np.testing.assert_allclose(results["stress"], stress, atol=1e-7)


def test_a_slab_is_the_crystal_with_a_wide_gap(model: CrystalModel) -> None:
    free, periodic = (fcc111("Al", (1, 1, 3), vacuum=6.0, periodic=flag) for flag in (False, True))
    free.positions[:, 2] -= 20.0  # atoms may lie outside of the cell along a free direction
    energies = []
    for atoms in (free, periodic):
        atoms.calc = DaoCalculator(model, dtype="float64")
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)


def test_energy_is_extensive_in_any_supercell(model: CrystalModel) -> None:
    atoms = bulk("NaCl", "rocksalt", 5.64)
    big = make_supercell(atoms, [[2, 1, 0], [0, 1, -1], [1, 0, 2]])
    energies = []
    for system in (atoms, big):
        system.calc = DaoCalculator(model, dtype="float64")
        energies.append(system.get_potential_energy() / len(system))
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)


def test_single_atoms_and_dimers_at_any_distance(model: CrystalModel) -> None:
    calculator = DaoCalculator(model)
    alone = calculator.get_potential_energy(Atoms("Cu"))
    assert np.isfinite(alone)
    far = calculator.get_potential_energy(Atoms("Cu2", [[0, 0, 0], [0, 0, 9.0]]))
    assert far == pytest.approx(2 * alone, abs=1e-5)
    scan = [
        calculator.get_potential_energy(Atoms("Cu2", [[0, 0, 0], [0, 0, d]])) for d in (0.3, 0.5, 0.8, 1.2)
    ]
    assert np.all(np.diff(scan) < 0)


def test_a_relaxation_runs_and_copies_agree(model: CrystalModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    atoms = bulk("NaCl", "rocksalt", 5.64) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    atoms.calc = DaoCalculator(model, dtype="float64")
    start = atoms.get_potential_energy()
    BFGS(atoms, logfile=None).run(fmax=1e-5, steps=5)
    assert atoms.get_potential_energy() < start
    twin = pickle.loads(pickle.dumps(atoms.calc))
    assert twin.get_potential_energy(atoms) == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    save_model(model, tmp_path / "p.safetensors", {"name": "p"})
    loaded = load_model_file(tmp_path / "p.safetensors")
    assert loaded.is_potential
    other = DaoCalculator(loaded).get_potential_energy(atoms)
    assert other == pytest.approx(atoms.get_potential_energy(), abs=1e-4)


def test_what_cannot_be_is_refused(model: CrystalModel, tiny_model) -> None:  # type: ignore[no-untyped-def]
    slab = Atoms("Al", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 9]], pbc=[True, True, False])
    with pytest.raises(CellError, match="independent"):
        DaoCalculator(model).get_potential_energy(slab)
    with pytest.raises(UnsupportedError, match="pbc"):
        to_batch(molecule("H2O"))
    with pytest.raises(UnsupportedError):
        DaoCalculator(tiny_model()).get_potential_energy(molecule("H2O"))


def test_molecules_pass_through_the_converter() -> None:
    water = molecule("H2O")
    x = to_batch([water, bulk("Cu")], bulk=False, dtype=torch.float64)
    assert x.pbc.tolist() == [[False] * 3, [True] * 3]
    back = to_atoms(x)
    assert not back[0].pbc.any() and back[1].pbc.all()
    np.testing.assert_allclose(back[0].get_all_distances(), water.get_all_distances(), atol=1e-12)


def test_groups_are_invisible(model: CrystalModel) -> None:
    x = rand_crystals(0, 7, min_distance=1.8)
    whole, parts = Predictor(model)(x), Predictor(model, max_pairs=300)(x)
    assert set(whole) == {"energy", "energy_per_atom", "forces", "stress", "energies"}
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)
    bare = Predictor(model, max_pairs=300)(x, forces=False)
    torch.testing.assert_close(bare["energies"], whole["energies"])


def _calibrated(model: CrystalModel) -> CrystalModel:
    bar = ErrorBar(16)
    bar.offset.fill_(-3.0)
    bar.whiten.copy_(torch.eye(16) / 4)
    return with_error_bar(model, bar)


def test_a_calibrated_potential_says_how_far_it_may_be_off(model: CrystalModel, tmp_path: Path) -> None:
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.calc = DaoCalculator(_calibrated(model), dtype="float64")
    salt.get_potential_energy()
    found = salt.calc.results["energy_uncertainty"]
    assert type(found) is float and found > 2 * np.exp(-3.0)  # two atoms
    assert salt.calc.get_property("energy_uncertainty", salt) == found
    big = salt * (2, 1, 1)
    big.calc = pickle.loads(pickle.dumps(salt.calc))  # a module, so the bar travels in the pickle
    big.get_potential_energy()
    assert big.calc.results["energy_uncertainty"] == pytest.approx(2 * found)
    assert "energy_uncertainty" not in salt.calc.export_properties()  # ASE has no name for it
    for name in ("a.traj", "a.extxyz", "a.json"):
        write(tmp_path / name, salt)
        assert read(tmp_path / name).get_potential_energy() == pytest.approx(salt.get_potential_energy())
    both = SumCalculator([salt.calc, LennardJones()])
    assert "energy_uncertainty" not in both.implemented_properties


def test_without_calibration_there_is_no_such_key(model: CrystalModel) -> None:
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.calc = DaoCalculator(model, dtype="float64")
    salt.get_forces()
    assert "energy_uncertainty" not in salt.calc.results
    with pytest.raises(PropertyNotImplementedError, match="energy_uncertainty"):
        salt.calc.get_property("energy_uncertainty", salt)
