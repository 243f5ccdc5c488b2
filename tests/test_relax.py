"""Relaxation for users: in one batch with a potential, one by one with any calculator, the same outcome."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixSymmetry
from ase.spacegroup import crystal
from pymatgen.core import Composition, IStructure, Lattice, Molecule, Structure
from pymatgen.core.surface import SlabGenerator
from pymatgen.io.ase import AseAtomsAdaptor

from crystalml.calculators.ase import DaoCalculator
from crystalml.convert import to_batch
from crystalml.errors import DisorderedStructureError, InputError, UnsupportedError
from crystalml.predict import Predictor
from crystalml.relax import as_engine, one_by_one, reduced, relax, spacegroup
from crystalml.relaxation.settings import OPTIMIZERS, RelaxSettings


@pytest.fixture
def copper() -> Structure:
    return AseAtomsAdaptor.get_structure(bulk("Cu", "fcc", a=3.75))


@pytest.fixture
def salt() -> Structure:
    return Structure(
        Lattice.from_parameters(4.1, 4, 4, 60, 61, 60), ["Na", "Cl"], [[0, 0, 0], [0.46, 0.5, 0.52]]
    )


@pytest.fixture(scope="module")
def potential(tiny_potential) -> Predictor:
    return Predictor(tiny_potential(torch.float64))


# --- any calculator ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_relaxing_copper_by_emt_finds_its_lattice_constant(copper, optimizer):
    result = relax(copper, EMT(), fmax=0.005, optimizer=optimizer, trajectory=True)[0]
    a = (4 * result["final_structure"].volume) ** (1 / 3)
    assert a == pytest.approx(3.59, abs=0.01)
    assert result["converged"] and result["fmax"] <= 0.005 and result["n_steps"] > 1 and not result["error"]
    steps = result["trajectory"]
    assert result["energy"] == steps["energies"][-1] < steps["energies"][0]
    assert {len(values) for values in steps.values()} == {result["n_steps"] + 1}
    assert result["spacegroup_before"] == result["spacegroup_after"] == "Fm-3m (225)"


def test_the_cell_stays_if_asked(copper):
    result = relax(copper, EMT(), cell=False)[0]
    np.testing.assert_allclose(result["final_structure"].lattice.matrix, copper.lattice.matrix)
    assert result["n_steps"] == 0 and result["converged"] and "trajectory" not in result


def test_one_calculator_that_fails_does_not_stop_the_others(copper):
    strange = Structure(Lattice.cubic(4), ["U"], [[0, 0, 0]])  # EMT knows no uranium
    with pytest.warns(RuntimeWarning, match="1 of 3 structures could not be relaxed; number 1: "):
        results = relax([copper, strange, copper], EMT(), max_steps=2, progress=False)
    assert [bool(result["error"]) for result in results] == [False, True, False]
    assert results[1]["final_structure"] == strange and np.isnan(results[1]["energy"])
    with pytest.raises(Exception, match="U"):
        relax(strange, EMT())  # alone, there is nothing else to lose


def test_symmetry_is_kept_through_ase_too(copper):
    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.rattle(0.002, seed=0)
    result = relax(atoms, EMT(), fix_symmetry=True, fmax=0.01)[0]
    assert result["spacegroup_before"] == result["spacegroup_after"] == "Fm-3m (225)"
    assert spacegroup(result["final_structure"], 1e-6) == "Fm-3m (225)"


# --- a potential ------------------------------------------------------------------------------------------
def test_what_runs_in_a_batch_and_what_does_not(tiny_model, tiny_potential):
    class WithMore(DaoCalculator):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)

    model = tiny_potential()
    calculator = DaoCalculator(model, device="cpu")
    for given in (model, calculator, Predictor(model), Predictor(model, max_pairs=7)):
        assert isinstance(as_engine(given), Predictor)
    assert as_engine(Predictor(model, max_pairs=7)).max_pairs == 7
    for given in (SumCalculator([calculator, EMT()]), WithMore(model, device="cpu"), EMT()):
        assert as_engine(given) is given
    for given in (tiny_model(), Predictor(tiny_model(dtype=torch.float64)), DaoCalculator(tiny_model())):
        engine = as_engine(given)
        assert isinstance(engine, DaoCalculator) and not engine.model.is_potential
    with pytest.raises(UnsupportedError, match="no energy head"):
        as_engine(tiny_model(energy=False))
    with pytest.raises(InputError, match="cannot relax with"):
        as_engine(3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cell", [True, False])
def test_the_batch_ends_where_ase_ends(potential, salt, optimizer, cell):
    settings = RelaxSettings(fmax=1e-3, max_steps=1000, cell=cell, optimizer=optimizer)
    calculator = DaoCalculator(potential.model, dtype="float64", device="cpu")
    batch = relax(salt, potential, fmax=1e-3, max_steps=1000, cell=cell, optimizer=optimizer)[0]
    ((_, alone),) = one_by_one([salt], calculator, settings)
    assert not isinstance(alone, Exception) and batch["converged"] and alone["converged"]
    assert batch["energy"] == pytest.approx(alone["energy"], abs=1e-4)
    assert batch["final_structure"].volume == pytest.approx(alone["final_structure"].volume, rel=3e-3)


def test_results_come_in_the_order_and_kind_of_the_input(potential, salt, copper):
    atoms = AseAtomsAdaptor.get_atoms(salt, msonable=False)
    atoms.info["name"] = "mine"
    atoms.set_tags([4, 5])
    before, positions = salt.copy(), atoms.positions.copy()
    given = [copper, salt, atoms, salt]
    results = relax(given, Predictor(potential.model, max_pairs=1), max_steps=7, progress=False)
    assert [type(result["final_structure"]) for result in results] == [type(item) for item in given]
    assert results[1]["energy"] == pytest.approx(results[3]["energy"], abs=1e-9)
    assert results[1]["energy"] == pytest.approx(results[2]["energy"], abs=1e-6)
    final = results[2]["final_structure"]
    assert final.info == {"name": "mine"} and final.get_tags().tolist() == [4, 5] and final.calc is None
    np.testing.assert_allclose(final.positions, results[1]["final_structure"].cart_coords, atol=1e-6)
    assert salt == before and np.array_equal(atoms.positions, positions)


def test_what_a_structure_carries_comes_back(potential, salt):
    salt.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    salt.add_site_property("magmom", [0.5, 0.0])
    salt.properties["id"] = "mp-1"
    final = relax(salt, potential, max_steps=2)[0]["final_structure"]
    assert [str(site.specie) for site in final] == ["Na+", "Cl-"]
    assert final.site_properties["magmom"] == [0.5, 0.0] and final.properties == {"id": "mp-1"}


def test_a_structure_of_any_class_comes_back_whole(potential, salt):
    salt.add_site_property("magmom", [0.5, 0.0])
    labels, about = ["Na1", "Cl7"], {"id": "mp-1"}
    parts = (salt.lattice, ["Na", "D"], salt.frac_coords)
    given = [
        Structure(*parts, charge=1, labels=labels, properties=about),
        IStructure(*parts, charge=-1, labels=labels, properties=about, site_properties=salt.site_properties),
        SlabGenerator(salt, (1, 0, 0), 4, 9, primitive=False).get_slab(),
    ]
    given[2].add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    given[2].properties["id"] = "mp-1"
    results = relax(given, potential, max_steps=2, progress=False)
    for item, result in zip(given, results, strict=True):
        final = result["final_structure"]
        assert type(final) is type(item) and not result["error"] and result["n_steps"] == 2
        assert not np.allclose(final.frac_coords, item.frac_coords)
        assert final._charge == item._charge and final.labels == item.labels and final.properties == about
        assert final.species == item.species
        assert final.site_properties == item.site_properties
    assert results[0]["final_structure"]._charge == 1
    assert results[2]["final_structure"].miller_index == (1, 0, 0)
    assert relax(given[1], potential, max_steps=2)[0]["energy"] == pytest.approx(results[1]["energy"])


def test_energies_and_forces_are_those_of_the_final_structure(potential, salt):
    result = relax(salt, potential, fmax=0.01, trajectory=True)[0]
    atoms = AseAtomsAdaptor.get_atoms(result["final_structure"], msonable=False)
    atoms.calc = DaoCalculator(potential.model, dtype="float64", device="cpu")
    assert atoms.get_potential_energy() == pytest.approx(result["energy"], abs=1e-8)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= result["fmax"] + 1e-9
    steps = result["trajectory"]
    assert {len(values) for values in steps.values()} == {result["n_steps"] + 1}
    np.testing.assert_allclose(steps["positions"][0], salt.cart_coords, atol=1e-9)
    np.testing.assert_allclose(steps["cells"][-1], result["final_structure"].lattice.matrix, atol=1e-9)


def test_atoms_outside_the_cell_and_left_handed_cells_keep_their_frame(potential, salt):
    images = np.array([[2, 0, -1], [0, 3, 0]])
    turned = Structure(salt.lattice.matrix[[1, 0, 2]], salt.species, salt.frac_coords[:, [1, 0, 2]])
    moved = Structure(salt.lattice, salt.species, salt.frac_coords + images)
    one, left, far = relax([salt, turned, moved], potential, max_steps=5, progress=False)
    np.testing.assert_allclose(left["energy"], one["energy"], atol=1e-8)
    final = one["final_structure"]
    np.testing.assert_allclose(
        left["final_structure"].lattice.matrix[[1, 0, 2]], final.lattice.matrix, atol=1e-7
    )
    np.testing.assert_allclose(left["final_structure"].cart_coords, final.cart_coords, atol=1e-7)
    np.testing.assert_allclose(far["final_structure"].frac_coords, final.frac_coords + images, atol=1e-7)


def test_slabs_and_molecules_keep_their_cell_and_share_the_batch(potential, salt):
    slab, water = fcc111("Al", (1, 1, 3), vacuum=6.0), molecule("H2O")
    slab.rattle(0.1, seed=0)
    flat = Structure(
        Lattice(slab.cell[:], pbc=(True, True, False)), ["Al"] * 3, slab.positions, coords_are_cartesian=True
    )
    results = relax([slab, salt, water, flat], potential, max_steps=6, progress=False)
    assert [result["error"] for result in results] == [""] * 4
    final = results[0]["final_structure"]
    np.testing.assert_array_equal(final.cell[:], slab.cell[:])
    assert final.pbc.tolist() == [True, True, False] and np.abs(final.positions - slab.positions).max() > 0.01
    assert results[2]["final_structure"].cell.rank == 0 and results[2]["spacegroup_after"] == ""
    np.testing.assert_allclose(results[3]["final_structure"].cart_coords, final.positions, atol=1e-6)
    assert results[3]["final_structure"].lattice.pbc == (True, True, False)
    assert results[0]["spacegroup_before"] == results[3]["spacegroup_before"] == ""


def test_constraints_are_kept_or_refused(potential, salt):
    atoms = AseAtomsAdaptor.get_atoms(salt.make_supercell(2, in_place=False), msonable=False)
    atoms.set_constraint([FixAtoms([0, 1]), FixCartesian([2], mask=(True, False, False))])
    final = relax(atoms, potential, cell=False, max_steps=5)[0]["final_structure"]
    moved = final.positions - atoms.positions
    assert np.abs(moved[:2]).max() < 1e-9 and abs(moved[2, 0]) < 1e-9 and abs(moved[2, 1]) > 1e-6
    assert len(final.constraints) == 2
    salt.add_site_property("selective_dynamics", [[False] * 3, [True] * 3])
    end = relax(salt, potential, cell=False, max_steps=5)[0]["final_structure"]
    shift = end.cart_coords - salt.cart_coords
    assert np.abs(shift[0]).max() < 1e-9 < 1e-6 < np.abs(shift[1]).max()
    salt.append("H", [0.3, 0.2, 0.25])  # a site added later has no flags: it is free
    assert salt.site_properties["selective_dynamics"][-1] is None
    end = relax(salt, potential, cell=False, max_steps=5)[0]["final_structure"]
    assert np.abs((end.cart_coords - salt.cart_coords)[0]).max() < 1e-9
    plain = Structure(salt.lattice, salt.species, salt.frac_coords)
    sheared = AseAtomsAdaptor.get_atoms(plain, msonable=False)
    sheared.set_cell(sheared.cell[:] @ [[1, 0.12, 0], [0.12, 1, 0.05], [0, 0.05, 1]], scale_atoms=True)
    sheared.set_constraint(FixCartesian([2], mask=(True, True, False)))
    final = relax(sheared, potential, max_steps=5)[0]["final_structure"]
    start, end = (x.get_scaled_positions(wrap=False)[2] @ sheared.cell[:] for x in (sheared, final))
    assert np.abs(end - start)[:2].max() < 1e-6 < abs(end - start)[2]  # as the cell carries them along
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(UnsupportedError, match="FixBondLength"):
        relax(atoms, potential)


@pytest.mark.parametrize("fixed", [0, False, np.False_])
def test_selective_dynamics_hold_under_any_calculator_and_as_any_number(copper, fixed):
    four = copper.make_supercell([2, 2, 1], in_place=False)
    four.translate_sites([0], [0.02, 0.01, 0])
    four.add_site_property(
        "selective_dynamics", [[fixed] * 3, [not fixed, fixed, not fixed], *[[True] * 3] * 2]
    )
    end = relax(four, EMT(), cell=False, max_steps=3)[0]["final_structure"]
    moved = end.cart_coords - four.cart_coords
    assert np.abs(moved[0]).max() < 1e-9 and abs(moved[1, 1]) < 1e-9 < 1e-4 < abs(moved[1, 0])
    assert end.site_properties == four.site_properties


def test_bad_structures_are_noted_and_the_others_relaxed(potential, salt):
    mixed = Structure(salt.lattice, [{"Na": 0.5, "K": 0.5}, "Cl"], salt.frac_coords)
    flat = Atoms("Cu", cell=[[3, 0, 0], [3, 0, 0], [0, 0, 3]], pbc=True)
    with pytest.warns(RuntimeWarning, match="2 of 4 structures"):
        results = relax([mixed, salt, flat, salt], potential, max_steps=3, progress=False)
    assert [bool(result["error"]) for result in results] == [True, False, True, False]
    assert "Na:0.5" in results[0]["error"] and results[0]["final_structure"] == mixed
    with pytest.raises(DisorderedStructureError):
        relax(mixed, potential)


def test_the_space_group_is_kept_if_asked(potential):
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.6, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    results = relax([rutile, rutile], potential, fix_symmetry=True, max_steps=40, progress=False)
    for result in results:
        assert result["spacegroup_before"] == result["spacegroup_after"] == "P4_2/mnm (136)"
        assert spacegroup(result["final_structure"], 1e-6) == "P4_2/mnm (136)"
        assert result["n_steps"] > 0


def test_unknown_elements_are_refused_by_name(tiny_potential, salt):
    model = tiny_potential()
    model.card = {"elements": ["Na", "O"]}
    with pytest.raises(InputError, match="Cl"):
        relax(salt, model)


# --- models that depend on the cell -----------------------------------------------------------------------
def test_an_energy_of_the_cell_starts_from_short_axes(tiny_model, salt):
    calculator = DaoCalculator(tiny_model(torch.float64), dtype="float64", device="cpu")
    skewed = salt.copy()
    skewed.make_supercell([[1, 0, 0], [0, 1, 0], [3, 0, 1]], to_unit_cell=True)
    short = relax(skewed, calculator, max_steps=0)[0]["final_structure"]
    assert max(short.lattice.abc) < 5 < max(skewed.lattice.abc)
    energies = relax(salt, calculator, max_steps=5, optimizer="fire", trajectory=True)[0]["trajectory"][
        "energies"
    ]
    assert energies[-1] < energies[0]
    slab = Atoms("Cu", cell=[3, 3, 20], pbc=[True, True, False])
    with pytest.raises(UnsupportedError, match="pbc"):
        relax(slab, calculator)


def test_short_axes_cost_nothing_that_was_carried(tiny_model, salt):
    calculator = DaoCalculator(tiny_model(torch.float64), dtype="float64", device="cpu")
    salt.make_supercell([[1, 0, 0], [0, 1, 0], [3, 0, 1]], to_unit_cell=True)
    atoms = AseAtomsAdaptor.get_atoms(salt, msonable=False)
    atoms.info["name"] = "mine"
    atoms.set_tags([4, 5])
    atoms.set_array("custom", np.arange(6).reshape(2, 3))
    atoms.set_constraint(FixCartesian([1], mask=(True, False, False)))
    salt.properties["id"], salt._charge = "mp-1", 1
    structure, end = (
        result["final_structure"]
        for result in relax([salt, atoms], calculator, cell=False, max_steps=2, progress=False)
    )
    assert max(structure.lattice.abc) < 5 and max(end.cell.lengths()) < 5
    assert structure.properties == {"id": "mp-1"} and structure._charge == 1
    assert end.info == {"name": "mine"} and end.get_tags().tolist() == [4, 5] and len(end.constraints) == 1
    assert end.arrays["custom"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert end.positions[1, 0] == pytest.approx(atoms.positions[1, 0], abs=1e-9)
    atoms.set_constraint(FixSymmetry(atoms))  # of the axes that were given
    with pytest.raises(UnsupportedError, match="FixSymmetry"):
        relax(atoms, calculator)


def test_a_potential_and_other_calculators_keep_the_axes_given(potential, copper):
    skewed = copper.copy()
    skewed.make_supercell([[1, 0, 0], [0, 1, 0], [3, 0, 1]], to_unit_cell=True)
    for engine in (potential, EMT()):
        kept = relax(skewed, engine, max_steps=0)[0]["final_structure"]
        np.testing.assert_allclose(kept.lattice.abc, skewed.lattice.abc)


def test_a_rattled_hexagonal_cell_keeps_its_axes():
    for gamma in (119.2, 120.0, 120.8):
        cell = Structure(Lattice.from_parameters(5.49, 5.50, 9.3, 90.2, 89.9, gamma), ["Cu"], [[0, 0, 0]])
        assert reduced(cell).lattice.gamma == pytest.approx(gamma)


# --- edges ------------------------------------------------------------------------------------------------
def test_running_out_of_steps_is_said_not_hidden(copper, potential, salt):
    for item, engine in ((copper, EMT()), (salt, potential)):
        result = relax(item, engine, fmax=1e-6, max_steps=1)[0]
        assert not result["converged"] and result["n_steps"] == 1 and result["fmax"] > 1e-6


def test_no_structures_and_bad_settings(copper):
    assert relax([], EMT(), progress=False) == []
    for wrong in ({"optimizer": "LBFGX"}, {"fmax": 0.0}, {"fmax": -1.0}, {"max_steps": -1}):
        with pytest.raises(InputError):
            relax(copper, EMT(), **wrong)


@pytest.mark.parametrize("engine", [EMT(), None])
def test_what_is_no_structure_is_refused_before_the_work(copper, engine):
    water = Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]])
    for wrong, message in (
        ("NaCl", "formula"),
        (None, "NoneType"),
        (5, "int"),
        (Composition("NaCl"), "structure 0 is a Element"),
        (water, "structure 0 is a Molecule.*Atoms"),
        (to_batch(copper), "structure 0 is a CrystalBatch.*to_structures"),
        ([copper, [copper]], "structure 1 is a list"),
        ([copper, None], "structure 1 is a NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            relax(wrong, engine, progress=False)
    with pytest.raises(InputError, match="made by calling"):
        relax(copper, EMT)


def test_partial_occupancy_is_refused_by_any_calculator(potential):
    cell = {"spacegroup": 225, "cellpar": [3.7] * 3 + [90] * 3, "occupancies": [0.7]}
    holes = crystal(["Cu"], [(0, 0, 0)], **cell)
    for engine in (EMT(), potential):
        with pytest.raises(DisorderedStructureError, match=r"0\.7"):
            relax(holes, engine)
    holes.calc = DaoCalculator(potential.model, dtype="float64", device="cpu")
    with pytest.raises(DisorderedStructureError, match=r"0\.7"):
        holes.get_potential_energy()


def test_space_group_of_anything():
    assert spacegroup(Structure(Lattice.cubic(3), ["Cu"], [[0, 0, 0]])) == "Pm-3m (221)"
    assert spacegroup(Structure(Lattice.cubic(3), ["Cu"] * 2, [[0, 0, 0], [0, 0, 0]])) == "P1 (1)"
    assert spacegroup(bulk("Cu")) == "Fm-3m (225)" and spacegroup(molecule("H2O")) == ""
