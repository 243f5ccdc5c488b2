"""The adapter to TorchSim: its own validation, the same numbers as ASE's, its optimizers at work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.stress import voigt_6_to_full_3x3_stress

from crystalml.calculators.ase import DaoCalculator
from crystalml.errors import UnsupportedError

ts = pytest.importorskip("torch_sim", reason="torch-sim is an extra, for Python 3.12 and later")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from crystalml.calculators.torchsim import DaoModel  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def model(request, tiny_potential) -> DaoModel:
    return DaoModel(tiny_potential(request.param), device="cpu", dtype=request.param)


def test_torch_sim_finds_nothing_to_object_to(model):
    validate_model_outputs(model, CPU, model.dtype)


@pytest.mark.parametrize("kind", ["bulk", "slab", "molecule"])
def test_the_numbers_are_those_of_the_calculator(model, kind):
    systems = {
        "bulk": [bulk("NaCl", "rocksalt", 5.7), bulk("Cu").repeat(2)],
        "slab": [fcc111("Al", (1, 1, 3), vacuum=6.0), fcc111("Cu", (2, 1, 2), vacuum=4.0)],
        "molecule": [molecule("CH3OH"), molecule("H2O")],
    }[kind]
    for atoms in systems:
        atoms.rattle(0.05, seed=0)
    out = model(ts.io.atoms_to_state(systems, CPU, model.dtype))
    assert {value.dtype for value in out.values()} == {model.dtype}
    calculator = DaoCalculator(model.model, device="cpu", dtype=model.dtype)
    start = 0
    for k, atoms in enumerate(systems):
        atoms.calc = calculator
        assert float(out["energy"][k]) == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        forces = out["forces"][start : start + len(atoms)]
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-4)
        if kind == "molecule":
            assert not out["stress"][k].any()
        else:
            stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
            np.testing.assert_allclose(out["stress"][k], stress, atol=1e-5)
        start += len(atoms)


def test_what_is_not_asked_for_is_left_out(tiny_potential):
    model = DaoModel(tiny_potential(), device="cpu", compute_stress=False)
    state = ts.io.atoms_to_state([bulk("Cu")], CPU, torch.float32)
    assert set(model(state)) == {"energy", "forces"}
    model.compute_forces, model.compute_stress = False, True
    assert set(model(state)) == {"energy", "stress"}
    model.compute_stress = False
    assert set(model(state)) == {"energy"}


def test_its_optimizers_go_downhill(tiny_potential):
    model = DaoModel(tiny_potential(torch.float64), device="cpu", dtype=torch.float64)
    systems = [bulk("NaCl", "rocksalt", 5.7), bulk("MgO", "rocksalt", 4.3)]
    for atoms in systems:
        atoms.rattle(0.1, seed=0)
    before = model(ts.io.atoms_to_state(systems, CPU, torch.float64))["energy"]
    for optimizer in (ts.Optimizer.fire, ts.Optimizer.gradient_descent):
        with pytest.warns(UserWarning, match="maximum number of steps"):
            after = ts.optimize(systems, model, optimizer=optimizer, max_steps=5)
        assert (after.energy < before).all()


def test_an_energy_of_the_cell_is_refused(tiny_model):
    with pytest.raises(UnsupportedError, match="no potential"):
        DaoModel(tiny_model(), device="cpu")
