"""Relaxation by an ASE loop: what it returns, and that one bad crystal does not stop the others."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystalml.calculators.ase import DaoCalculator
from crystalml.errors import InputError, UnsupportedError
from crystalml.relax import reduced, relax, relax_files, spacegroup


@pytest.fixture
def copper() -> Structure:
    atoms = bulk("Cu", "fcc", a=3.75)
    return AseAtomsAdaptor.get_structure(atoms)


@pytest.mark.parametrize("optimizer", ["FIRE", "BFGS"])
def test_relaxing_copper_by_emt_finds_its_lattice_constant(copper, optimizer):
    result = relax(copper, EMT(), fmax=0.005, optimizer=optimizer)[0]
    a = (4 * result["final_structure"].volume) ** (1 / 3)
    assert a == pytest.approx(3.59, abs=0.01)
    assert result["converged"] and result["fmax"] <= 0.005 and result["n_steps"] > 1
    assert result["energy"] == result["trajectory"]["energies"][-1] < result["trajectory"]["energies"][0]
    assert len(result["trajectory"]["energies"]) == len(result["trajectory"]["fmax"]) == result["n_steps"] + 1
    assert result["spacegroup_before"] == result["spacegroup_after"] == "Fm-3m (225)"


def test_the_cell_stays_if_asked(copper):
    result = relax(copper, EMT(), cell=False, niggli=False)[0]
    np.testing.assert_allclose(result["final_structure"].lattice.matrix, copper.lattice.matrix)
    assert result["n_steps"] == 0 and result["converged"]


def test_running_out_of_steps_is_said_not_hidden(copper):
    result = relax(copper, EMT(), fmax=1e-6, steps=1)[0]
    assert not result["converged"] and result["n_steps"] == 1 and result["fmax"] > 1e-6


def test_inputs_are_left_alone_and_may_be_many(copper):
    atoms = bulk("Al", "fcc", a=4.2)
    before, positions = copper.copy(), atoms.cell[:].copy()
    results = relax([copper, atoms], EMT(), steps=3)
    assert [r["final_structure"].reduced_formula for r in results] == ["Cu", "Al"]
    assert copper == before and np.array_equal(atoms.cell[:], positions) and atoms.calc is None


def test_a_skewed_cell_starts_from_its_niggli_form(copper):
    skewed = copper.copy()
    skewed.make_supercell([[1, 0, 0], [0, 1, 0], [3, 0, 1]], to_unit_cell=True)
    short = relax(skewed, EMT(), steps=0)[0]["final_structure"]
    assert max(short.lattice.abc) < 3 < max(skewed.lattice.abc)
    kept = relax(skewed, EMT(), steps=0, niggli=False)[0]["final_structure"]
    np.testing.assert_allclose(kept.lattice.abc, skewed.lattice.abc)


def test_a_rattled_hexagonal_cell_keeps_its_axes():
    for gamma in (119.2, 120.0, 120.8):
        cell = Structure(Lattice.from_parameters(5.49, 5.50, 9.3, 90.2, 89.9, gamma), ["Cu"], [[0, 0, 0]])
        assert reduced(cell).lattice.gamma == pytest.approx(gamma)


def test_a_network_relaxes_downhill(tiny_model):
    import torch

    calculator = DaoCalculator(tiny_model(dtype=torch.float64), dtype="float64", device="cpu")
    salt = Structure(
        Lattice.from_parameters(4, 4, 4, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.45, 0.5, 0.5]]
    )
    energies = relax(salt, calculator, steps=5)[0]["trajectory"]["energies"]
    assert energies[-1] < energies[0]


def test_slabs_reach_the_calculator_which_says_why_not(tiny_model):
    slab = Atoms("Cu", cell=[3, 3, 20], pbc=[True, True, False])
    with pytest.raises(UnsupportedError, match="pbc"):
        relax(slab, DaoCalculator(tiny_model(), device="cpu"))


@pytest.mark.parametrize("wrong", [{"optimizer": "LBFGX"}, {"fmax": 0.0}, {"fmax": -1.0}, {"steps": -1}])
def test_bad_settings(copper, wrong):
    with pytest.raises(InputError):
        relax(copper, EMT(), **wrong)


def test_bad_files_are_reported_and_the_others_go_on(tmp_path, copper, tiny_model):
    copper.to(str(tmp_path / "a.cif"))
    (tmp_path / "b.cif").write_text("no crystal")
    Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]]).to(str(tmp_path / "POSCAR"))
    copper.to(str(tmp_path / "z.cif"))
    heard = []
    report = relax_files(
        tmp_path, DaoCalculator(tiny_model(), device="cpu"), steps=1, on_done=lambda *a: heard.append(a)
    )
    assert [name.rsplit("/")[-1] for name, _ in report.results] == ["a.cif", "z.cif"]
    failures = {name.rsplit("/")[-1]: reason for name, reason in report.failures}
    assert set(failures) == {"b.cif", "POSCAR"} and "Angstrom apart" in failures["POSCAR"]
    assert len(heard) == 3


def test_space_group_of_anything():
    assert spacegroup(Structure(Lattice.cubic(3), ["Cu"], [[0, 0, 0]])) == "Pm-3m (221)"
    assert spacegroup(Structure(Lattice.cubic(3), ["Cu"] * 2, [[0, 0, 0], [0, 0, 0]])) == "P1 (1)"
