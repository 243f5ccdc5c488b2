"""DaoCalculator keeps ASE's contract, and each known trap of machine-learned calculators stays shut."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.calculator import BaseCalculator, Calculator
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from ase.calculators.test import gradient_test
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.optimize import BFGS
from pymatgen.core import Lattice, Structure

from crystalml.calculators.ase import DaoCalculator
from crystalml.errors import (
    CellError,
    EmptyStructureError,
    InputError,
    NonFiniteError,
    OverlappingAtomsError,
    UnknownElementError,
    UnsupportedError,
    WeightsError,
)
from crystalml.predict import Predictor
from crystalml.training.checkpoint import save_model


@pytest.fixture
def model(tiny_model):
    return tiny_model(dtype=torch.float64)


@pytest.fixture
def calc(model) -> DaoCalculator:
    return DaoCalculator(model, dtype="float64", device="cpu")


@pytest.fixture
def weights(tmp_path, tiny_model):
    path = tmp_path / "tiny.safetensors"
    save_model(tiny_model(), path, {"name": "tiny", "elements": ["Na", "Cl", "Cu", "X"][:3]})
    return path


@pytest.fixture
def salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6) * (1, 1, 2)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.fixture
def structure() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


# --- numbers ----------------------------------------------------------------------------------------------
def test_forces_agree_with_finite_differences(calc, salt):
    salt.calc = calc
    expected = calculate_numerical_forces(salt, eps=1e-5)
    np.testing.assert_allclose(salt.get_forces(), expected, rtol=1e-5, atol=1e-7)
    analytical, numerical = gradient_test(salt, [0, 3])
    np.testing.assert_allclose(analytical, numerical, rtol=1e-3, atol=1e-5)


def test_stress_agrees_with_finite_differences_in_voigt_order_and_sign(calc, salt):
    salt.set_cell(salt.cell[:] + 0.1 * np.random.default_rng(0).standard_normal((3, 3)), scale_atoms=True)
    salt.calc = calc
    stress = salt.get_stress()
    assert stress.shape == (6,)
    np.testing.assert_allclose(stress, calculate_numerical_stress(salt, eps=1e-6), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(salt.get_stress(voigt=False), salt.get_stress(voigt=False).T)


def test_energy_is_total_and_matches_the_predictor(calc, model, salt):
    from crystalml.convert import to_batch

    salt.calc = calc
    expected = Predictor(model)(to_batch(salt, dtype=torch.float64))
    assert salt.get_potential_energy() == pytest.approx(float(expected["energy"][0]), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", torch.float64])
def test_results_are_python_floats_and_double_arrays(model, salt, dtype):
    salt.calc = DaoCalculator(model, dtype=dtype, device="cpu")
    assert type(salt.get_potential_energy()) is float
    assert salt.get_forces().dtype == salt.get_stress().dtype == np.float64
    assert salt.get_forces().shape == (len(salt), 3)


def test_single_precision_is_close(model, salt, calc):
    salt.calc = calc
    energy, forces = salt.get_potential_energy(), salt.get_forces()
    salt.calc = DaoCalculator(model, device="cpu")
    assert salt.get_potential_energy() == pytest.approx(energy, rel=1e-4)
    np.testing.assert_allclose(salt.get_forces(), forces, atol=1e-3)


def test_left_handed_cells_and_atoms_outside_of_the_cell_change_nothing(calc, salt):
    salt.calc = calc
    energy, forces, stress = salt.get_potential_energy(), salt.get_forces(), salt.get_stress()
    moved = salt.copy()
    moved.positions += np.array([1, -2, 0]) @ moved.cell[:]
    moved.calc = calc
    np.testing.assert_allclose(moved.get_forces(), forces, atol=1e-9)
    inverted = Atoms(salt.numbers, cell=-salt.cell[:], positions=salt.positions, pbc=True)  # left-handed
    inverted.calc = calc
    assert inverted.get_potential_energy() == pytest.approx(energy, rel=1e-10)
    np.testing.assert_allclose(inverted.get_forces(), forces, atol=1e-9)
    np.testing.assert_allclose(inverted.get_stress(), stress, atol=1e-10)


# --- the contract -----------------------------------------------------------------------------------------
def test_properties_belong_to_the_instance(calc, model):
    before = list(BaseCalculator.implemented_properties)
    other = DaoCalculator(model, device="cpu")
    other.implemented_properties.append("magmoms")
    assert "magmoms" not in calc.implemented_properties
    assert "magmoms" not in DaoCalculator.implemented_properties
    assert BaseCalculator.implemented_properties == before
    assert Calculator.implemented_properties == before
    assert {"energy", "free_energy", "forces", "stress"} == set(calc.implemented_properties)


def test_free_energy_is_declared(calc, salt):
    salt.calc = calc
    assert salt.get_potential_energy(force_consistent=True) == salt.get_potential_energy()


def test_one_call_computes_everything(calc, salt):
    salt.calc = calc
    salt.get_potential_energy()
    assert set(calc.results) == set(calc.implemented_properties)
    assert not calc.calculation_required(salt, ["energy", "forces", "stress"])


@pytest.mark.parametrize("wrong", ["typo_kwarg", "label", "properties", "compute_stress"])
def test_unknown_settings_are_refused_by_name(model, wrong):
    with pytest.raises(TypeError, match=wrong):
        DaoCalculator(model, **{wrong: 1})


def test_settings_cannot_be_slipped_in_later(calc):
    with pytest.raises(InputError, match="typo"):
        calc.set(typo=1)
    with pytest.raises(InputError, match="float16"):
        DaoCalculator(calc.model, dtype="float16")


def test_stress_weight_is_tolerated_and_ignored(calc, model, salt):
    salt.calc = calc
    expected = salt.get_stress()
    salt.calc = DaoCalculator(model, dtype="float64", device="cpu", stress_weight=0.01)
    np.testing.assert_array_equal(salt.get_stress(), expected)


def test_results_are_kept_until_something_that_matters_changes(calc, salt, monkeypatch):
    salt.calc = calc
    salt.get_forces()
    calls = []
    whole = Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", lambda self, *a, **k: calls.append(1) or whole(self, *a, **k))
    salt.info["note"] = "irrelevant to the model"
    salt.set_initial_magnetic_moments(np.ones(len(salt)))
    salt.set_initial_charges(np.ones(len(salt)))
    salt.get_forces()
    assert not calls
    salt.positions[0, 0] += 1e-6
    salt.get_forces()
    salt.get_stress()
    assert len(calls) == 1
    salt.numbers[0] = 19
    salt.get_forces()
    assert len(calls) == 2


def test_results_are_not_aliases(calc, salt):
    salt.calc = calc
    salt.get_forces()[:] = 0
    assert np.abs(salt.get_forces()).max() > 0


def test_the_callers_module_is_left_alone(tiny_model, salt):
    module = tiny_model(dtype=torch.float32).train()
    salt.calc = DaoCalculator(module, dtype="float64", device="cpu")
    salt.get_forces()
    assert module.training and next(module.parameters()).dtype == torch.float32
    assert all(p.grad is None for p in module.parameters())


# --- what it refuses --------------------------------------------------------------------------------------
def test_unknown_elements_are_refused_on_attach(weights):
    calc = DaoCalculator(weights, device="cpu")
    with pytest.raises(UnknownElementError, match="Po"):
        bulk("Po", "sc", a=3.3).calc = calc
    with pytest.raises(UnknownElementError, match="Po"):
        Atoms("Po", cell=[3.3] * 3, pbc=True, calculator=calc)
    with pytest.raises(UnknownElementError, match="no element"):
        Atoms("X", cell=[3.3] * 3, pbc=True).calc = calc
    salt = bulk("NaCl", "rocksalt", a=5.6)
    salt.calc = calc
    salt.numbers[0] = 84
    with pytest.raises(UnknownElementError, match="Po"):
        salt.get_potential_energy()


def test_slabs_wires_and_molecules_are_refused_not_guessed(calc):
    slab = fcc111("Cu", (1, 1, 4), a=3.6, vacuum=8)
    add_adsorbate(slab, "O", 1.5)
    slab.calc = calc
    with pytest.raises(UnsupportedError, match=r"pbc = \[True, True, False\]"):
        slab.get_potential_energy()
    molecule = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]])
    molecule.calc = calc
    with pytest.raises(UnsupportedError, match="bulk"):
        molecule.get_forces()


@pytest.mark.parametrize("cell", [[0, 0, 0], [4, 4, 0], [[4, 0, 0], [8, 0, 0], [0, 0, 4]]])
def test_missing_or_flat_cells_are_refused(calc, cell):
    atoms = Atoms("Cu", cell=cell, pbc=True)
    atoms.calc = calc
    with pytest.raises(CellError):
        atoms.get_potential_energy()


def test_no_atoms(calc):
    atoms = Atoms(cell=[4, 4, 4], pbc=True)
    atoms.calc = calc
    with pytest.raises(EmptyStructureError):
        atoms.get_potential_energy()
    with pytest.raises(EmptyStructureError):
        DaoCalculator(calc.model, device="cpu").calculate()


def test_not_a_number(calc, salt):
    salt.positions[0, 0] = np.nan
    salt.calc = calc
    with pytest.raises(NonFiniteError):
        salt.get_forces()


@pytest.mark.parametrize("distance", [0.0, 0.2, 0.4])
def test_atoms_on_top_of_each_other_have_no_made_up_energy(calc, distance):
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [distance, 0, 0]], cell=[6, 6, 6], pbc=True)
    atoms.calc = calc
    with pytest.raises(OverlappingAtomsError):
        atoms.get_potential_energy()
    small = Atoms("Cu", cell=[0.45, 6, 6], pbc=True)  # its own image is too near
    small.calc = calc
    with pytest.raises(OverlappingAtomsError):
        small.get_potential_energy()


def test_a_failed_call_leaves_no_stale_results(calc, salt):
    salt.calc = calc
    salt.get_potential_energy()
    salt.pbc = [True, True, False]
    for _ in range(2):
        with pytest.raises(UnsupportedError):
            salt.get_potential_energy()
    salt.pbc = True
    assert np.isfinite(salt.get_potential_energy())


def test_models_without_energy_and_unknown_names(tiny_model):
    with pytest.raises(UnsupportedError, match="energy head"):
        DaoCalculator(tiny_model(energy=False), device="cpu")
    with pytest.raises(WeightsError, match="no-such-model"):
        DaoCalculator("no-such-model", device="cpu")


# --- travelling -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda c: pickle.loads(pickle.dumps(c))])
@pytest.mark.parametrize("source", ["file", "module"])
def test_copies_and_pickles_work_fresh_and_after_a_call(weights, tiny_model, salt, called, way, source):
    calc = DaoCalculator(weights if source == "file" else tiny_model(), device="cpu")
    expected = DaoCalculator(weights, device="cpu").get_property("energy", salt)
    if called:
        calc.get_property("forces", salt)
    other = way(calc)
    assert other.get_property("energy", salt) == pytest.approx(expected, rel=1e-6)
    assert other.parameters == calc.parameters
    other.implemented_properties.append("x")
    assert way is copy.copy or "x" not in calc.implemented_properties


def test_a_pickle_of_shipped_or_file_weights_is_a_reference(weights, tiny_model, salt):
    by_file, by_module = DaoCalculator(weights, device="cpu"), DaoCalculator(tiny_model(), device="cpu")
    by_file.get_property("energy", salt)
    assert len(pickle.dumps(by_file)) < 5_000 < len(pickle.dumps(by_module))


def test_a_pickle_keeps_the_architecture_of_an_unusual_module(salt):
    from crystalml.models.cspnet import CSPNetConfig
    from crystalml.models.heads import EnergyScale
    from crystalml.models.model import CrystalModel, ModelConfig

    torch.manual_seed(0)
    encoder = CSPNetConfig(dim=8, depth=1, frequencies=3)
    config = ModelConfig(encoder, noise=False, energy=EnergyScale(-2.0, 3.0))
    calc = DaoCalculator(CrystalModel(config), dtype="float64", device="cpu")
    other = pickle.loads(pickle.dumps(calc))
    assert other.model.config == config
    assert other.get_property("energy", salt) == calc.get_property("energy", salt)


def test_an_independent_copy_does_not_share_atoms_or_results(calc, salt):
    calc.get_property("energy", salt)
    other = copy.deepcopy(calc)
    other.results["energy"] = 0.0
    other.atoms.positions += 1
    assert calc.results["energy"] != 0.0
    assert not calc.check_state(salt)


def test_parameters_are_json_and_trajectories_can_be_written(tmp_path, calc, salt):
    json.dumps(calc.todict())
    json.dumps(calc.parameters)
    salt.calc = calc
    path = tmp_path / "opt.traj"
    BFGS(FrechetCellFilter(salt), trajectory=str(path), logfile=None).run(fmax=1e-4, steps=3)
    frames = list(Trajectory(path))
    assert frames[-1].get_potential_energy() == pytest.approx(salt.get_potential_energy())
    np.testing.assert_allclose(read(path).get_stress(), salt.get_stress())


def test_it_can_be_added_to_another_calculator(calc, salt):
    salt.calc = calc
    energy, stress = salt.get_potential_energy(), salt.get_stress()
    salt.calc = SumCalculator([calc, copy.deepcopy(calc)])
    assert salt.get_potential_energy() == pytest.approx(2 * energy)
    np.testing.assert_allclose(salt.get_stress(), 2 * stress)


# --- pymatgen ---------------------------------------------------------------------------------------------
def test_structure_calculate_and_relax_take_the_instance(calc, structure, tmp_path):
    done = structure.calculate(calculator=calc).results  # pymatgen returns the calculator itself
    energy = done["energy"]
    assert energy == done["free_energy"] and done["stress"].shape == (6,)
    log = {"trajectory": str(tmp_path / "opt.traj")}
    relaxed, frames = structure.relax(
        calculator=calc, steps=3, fmax=1e-3, return_trajectory=True, opt_kwargs=log
    )
    assert isinstance(relaxed, Structure) and relaxed.calc is calc
    assert frames[0].get_potential_energy() == pytest.approx(energy, rel=1e-6)


def test_structure_relax_takes_the_class_and_keeps_units(monkeypatch, weights, structure):
    """pymatgen calls a class with stress_weight=0.01."""
    init = DaoCalculator.__init__
    monkeypatch.setattr(DaoCalculator, "__init__", lambda self, **k: init(self, weights, device="cpu", **k))
    by_class = structure.relax(calculator=DaoCalculator, steps=2, fmax=1e-3)
    monkeypatch.undo()
    by_instance = structure.relax(calculator=DaoCalculator(weights, device="cpu"), steps=2, fmax=1e-3)
    np.testing.assert_allclose(by_class.lattice.matrix, by_instance.lattice.matrix)


def test_structure_relax_lowers_the_energy(calc, structure):
    structure.perturb(0.1)
    before = structure.calculate(calculator=calc).results["energy"]
    after = structure.relax(calculator=calc, steps=10, fmax=1e-3).calc.results["energy"]
    assert after < before


# --- quiet imports ----------------------------------------------------------------------------------------
def test_import_does_no_network_disk_or_gpu(tmp_path):
    code = (
        "import socket\n"
        "def no(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = no\n"
        "import torch\n"
        "before = torch.get_default_dtype(), torch.get_num_threads()\n"
        "from crystalml.calculators.ase import DaoCalculator\n"
        "assert before == (torch.get_default_dtype(), torch.get_num_threads())\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    env = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_atoms_in_one_place_are_named(tiny_potential):
    """Their repulsion is enormous and their force zero: an optimizer would call that a minimum."""
    pair = Atoms("Cu2Na", [[0, 0, 0], [0, 0, 0], [3, 3, 3]], cell=[6, 6, 6], pbc=True)
    pair.calc = DaoCalculator(tiny_potential())
    with pytest.raises(OverlappingAtomsError, match="Angstrom apart"):
        pair.get_potential_energy()
    pair.positions[1] = [0.3, 0, 0]
    assert pair.get_forces()[1, 0] > 100
