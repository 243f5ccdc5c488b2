"""Formation energies become entries that stand beside processed Materials Project entries."""

from __future__ import annotations

import pytest
from ase.build import bulk
from ase.constraints import FixAtoms
from pymatgen.analysis.phase_diagram import PhaseDiagram
from pymatgen.core import Composition, DummySpecies, Element, Lattice, Species, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from crystalml.entries import computed_entry, element_entries
from crystalml.errors import InputError, UnknownElementError

POTCARS = {"Li": "Li_sv", "Fe": "Fe_pv", "O": "O"}


def vasp(formula: str, energy_per_atom: float) -> ComputedStructureEntry:
    """An entry as a Materials Project calculation gives it, uncorrected; its geometry plays no part."""
    composition = Composition(formula)
    species = [symbol for symbol, n in composition.get_el_amt_dict().items() for _ in range(int(n))]
    structure = Structure(
        Lattice.cubic(3.0 * len(species) ** (1 / 3)),
        species,
        [[i / len(species)] * 3 for i in range(len(species))],
    )
    hubbard = {"Fe": 5.3, "O": 0.0} if {"Fe", "O"} <= set(species) else {}
    parameters = {
        "run_type": "GGA+U" if hubbard else "GGA",
        "is_hubbard": bool(hubbard),
        "hubbards": {name: hubbard.get(name, 0.0) for name in dict.fromkeys(species)} if hubbard else {},
        "potcar_symbols": [f"PBE {POTCARS[name]}" for name in dict.fromkeys(species)],
    }
    return ComputedStructureEntry(
        structure, energy_per_atom * len(species), parameters=parameters, entry_id=formula
    )


@pytest.fixture(scope="module")
def diagram() -> PhaseDiagram:
    raw = [vasp("Li", -1.9), vasp("Fe", -8.4), vasp("O2", -4.95), vasp("Li2O", -4.77), vasp("Fe2O3", -6.8)]
    entries = MaterialsProject2020Compatibility(check_potcar=False).process_entries(raw)
    assert len(entries) == len(raw)
    assert any(abs(entry.correction) > 0.5 for entry in entries)  # oxides and +U metals are corrected
    return PhaseDiagram(entries)


def test_the_formation_energy_comes_back_among_corrected_entries(diagram: PhaseDiagram) -> None:
    crystal = vasp("LiFeO2", 0.0).structure
    entry = computed_entry(crystal, -6.4, diagram)
    assert diagram.get_form_energy_per_atom(entry) == pytest.approx(-6.4 / 4, abs=1e-12)
    mu = {element.symbol: corner.energy_per_atom for element, corner in diagram.el_refs.items()}
    assert computed_entry(crystal, -6.4, mu).energy == pytest.approx(entry.energy)


@pytest.mark.parametrize("energy", [-9.5, -6.4])  # a new stable phase, and an unstable one
def test_the_hull_is_the_same_in_formation_energies(diagram: PhaseDiagram, energy: float) -> None:
    crystal = vasp("LiFeO2", 0.0).structure
    above = diagram.get_decomp_and_e_above_hull(
        computed_entry(crystal, energy, diagram), allow_negative=True
    )[1]
    known = [
        computed_entry(entry.structure, diagram.get_form_energy(entry))
        for entry in diagram.all_entries
        if len(entry.composition) > 1
    ]
    own = PhaseDiagram([*known, *element_entries(["Li", "Fe", "O"])])
    found = own.get_decomp_and_e_above_hull(computed_entry(crystal, energy), allow_negative=True)[1]
    assert found == pytest.approx(above, abs=1e-9)
    assert (above < 0) == (energy == -9.5)


def test_atoms_with_constraints_and_data() -> None:
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.set_constraint(FixAtoms([0]))
    entry = computed_entry(salt, -4.2, data={"energy_uncertainty": 0.1})
    assert entry.composition.reduced_formula == "NaCl" and entry.energy == -4.2
    assert entry.data == {"energy_uncertainty": 0.1} and len(salt.constraints) == 1


def test_charges_spins_and_isotopes_are_no_elements_of_their_own(diagram: PhaseDiagram) -> None:
    salt = Structure(Lattice.cubic(4), [Species("Na", 1), Species("Cl", -1, spin=1)], [[0, 0, 0], [0.5] * 3])
    heavy = Structure(
        Lattice.cubic(4), ["Na", "D"], [[0, 0, 0], [0.5] * 3], properties={"material_id": "mp-1"}
    )
    entry, hydride = computed_entry(salt, -4.2), computed_entry(heavy, -1.0)
    own = PhaseDiagram([entry, hydride, *element_entries("Na-Cl-H")])
    assert own.get_form_energy_per_atom(entry) == pytest.approx(-2.1) and own.get_e_above_hull(entry) == 0
    assert own.get_form_energy_per_atom(hydride) == pytest.approx(-0.5)
    assert computed_entry(salt, -4.2, {"Na": -1.0, "Cl": -2.0}).energy == pytest.approx(-7.2)
    assert salt[0].specie == Species("Na", 1)  # the caller's is left alone
    assert (entry.entry_id, hydride.entry_id) == (None, "mp-1")
    assert computed_entry(salt, -4.2, data={"material_id": "mp-2"}).entry_id == "mp-2"


def test_corners_are_named_in_any_way() -> None:
    for given in ("Na-Cl", ["Cl", "Na", "Na"], [Element("Na"), Species("Cl", -1)]):
        assert [entry.composition for entry in element_entries(given)] == [
            Composition("Cl"),
            Composition("Na"),
        ]
    for wrong, name in (("NaCl", "NaCl"), (["Nax"], "Nax"), ([DummySpecies("X")], "X")):
        with pytest.raises(UnknownElementError, match=name):
            element_entries(wrong)
    with pytest.raises(UnknownElementError, match="X"):
        computed_entry(Structure(Lattice.cubic(4), [DummySpecies("X")], [[0, 0, 0]]), 0.0)


def test_what_is_missing_is_named(diagram: PhaseDiagram) -> None:
    salt = bulk("NaCl", "rocksalt", 5.64)
    with pytest.raises(InputError, match="Cl, Na"):
        computed_entry(salt, -4.2, diagram)
    with pytest.raises(InputError, match="nan"):
        computed_entry(salt, float("nan"))
