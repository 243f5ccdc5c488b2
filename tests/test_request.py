"""Formulas and systems become cells: as written, by statistics, or all that known prototypes have."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Molecule

from crystalml.composition import parse_composition
from crystalml.errors import InputError, TooManyAtomsError
from crystalml.prototypes import PrototypeAtlas
from crystalml.request import Fixed, FormulaUnitsLike, Reader, likely_formulas, portions, system_elements


def reader(
    card: dict[str, object] | None = None,
    known: bool = False,
    units: FormulaUnitsLike = "auto",
    low: int = 1,
    high: int | None = None,
) -> Reader:
    return Reader(PrototypeAtlas.default(), card or {}, known, units, low, high)


def test_automatic_formula_units() -> None:
    card = {"formula_units": {"by_formula": {"1-1": 4}, "by_atoms": {"2": 1, "3": 2}}}

    def z(formula: str) -> int:
        (group,) = reader(card, high=20).groups(formula, 0, 1)
        return group.drawn.z

    assert z("NaCl") == 4  # same anonymous formula
    assert z("TiO2") == 2  # same number of atoms a formula unit
    assert z("CsV3Sb5") == 1  # nothing known
    (group,) = reader(card).groups("Cs2V6Sb10", 0, 1)
    assert (group.drawn.z, group.drawn.formula) == (1, "Cs2V6Sb10")  # written as a cell content


def test_sizes_that_prototypes_have_compete() -> None:
    (group,) = reader(known=True, high=12).groups("TiO2", 7, 5)
    assert [cell.atoms for cell in group.cells] == [3, 6, 9, 12]
    assert (group.owner, group.want) == (7, 5)
    (group,) = reader(known=True, low=5, high=12).groups("TiO2", 0, 5)
    assert [cell.atoms for cell in group.cells] == [6, 9, 12] and group.drawn.atoms == 6


def test_a_range_asks_for_every_number() -> None:
    groups = reader(units=range(1, 4)).groups("NaCl", 0, 2)
    assert [(g.drawn.z, g.want, len(g.cells)) for g in groups] == [(1, 2, 1), (2, 2, 1), (3, 2, 1)]


@pytest.mark.parametrize(("formula", "group", "z"), [("FeS2", 205, 4), ("FeSi", 198, 4), ("NaCl", 225, 1)])
def test_diffusion_draws_a_cell_that_the_group_has_sites_for(formula: str, group: int, z: int) -> None:
    asked = Reader(PrototypeAtlas.default(), {"max_atoms": 20}, False, "auto", 1, None, group)
    assert asked.groups(formula, 0, 1)[0].drawn.z == z


@pytest.mark.parametrize(("low", "high"), [(0, None), (-3, None), (1, 0), (1, "12"), (1.5, None)])
def test_sizes_are_whole_numbers(low: int, high: int | None) -> None:
    with pytest.raises(InputError, match=r"min_atoms|max_atoms"):
        reader(low=low, high=high)


def test_limits() -> None:
    with pytest.raises(TooManyAtomsError, match="max_atoms=22"):
        reader({"max_atoms": 20}, units=11).groups("NaCl", 0, 1)
    assert reader({"max_atoms": 20}, known=True, units=11).groups("NaCl", 0, 1)  # the atlas has larger cells
    with pytest.raises(InputError, match="min_atoms=5"):
        reader(units=2, low=5).groups("NaCl", 0, 1)
    with pytest.raises(TooManyAtomsError, match="max_atoms=5"):
        reader(high=4).groups("CaTiO3", 0, 1)


@pytest.mark.parametrize("units", [2, np.int64(2), np.array(2)])
def test_whole_numbers_of_any_kind_are_formula_units(units: FormulaUnitsLike) -> None:
    (group,) = reader(units=units).groups("NaCl", 0, 1)
    assert group.drawn.z == 2 and group.drawn.atoms == 4


@pytest.mark.parametrize("units", [0, -1, 1.0, True, "2", None, float("nan"), range(0), range(3)])
def test_what_is_no_number_of_formula_units(units: FormulaUnitsLike) -> None:
    with pytest.raises(InputError, match="formula_units"):
        reader(units=units).groups("NaCl", 0, 1)


@pytest.mark.parametrize("group", [225, np.int64(225), "Fm-3m", " Fm-3m "])
def test_space_groups_go_by_number_or_symbol(group: int | str) -> None:
    assert Fixed.of(group, None, None).space_group == 225


@pytest.mark.parametrize("group", ["225", "Fm-3x", "", 225.5, 225.0, 0, 231, -1, True, [225], float("nan")])
def test_what_is_no_space_group(group: int | str) -> None:
    with pytest.raises(InputError, match=r"space.group"):
        Fixed.of(group, None, None)


def test_lattices_may_be_matrices() -> None:
    cell = Lattice.orthorhombic(3, 4, 5)
    for given in (cell, cell.matrix, cell.matrix.tolist()):
        assert Fixed.of(None, given, None).lattice == cell
    for wrong in (4.0, "cubic", [[4, 0, 0]], [[4, 0], [0, 4], [1, 1, 1]]):
        with pytest.raises(InputError, match="3 x 3"):
            Fixed.of(None, wrong, None)  # type: ignore[arg-type]
    for odd in ("POSCAR", Molecule(["O"], [[0, 0, 0]]), cell):
        with pytest.raises(InputError, match="fixed must be a pymatgen Structure"):
            Fixed.of(None, None, odd)


def test_likely_formulas_are_those_of_chemistry() -> None:
    found = likely_formulas(system_elements("Li-O"), PrototypeAtlas.default(), (1, 12), 12)
    assert "Li2O" in [unit.reduced_formula for unit, _ in found[:3]]
    assert sum(share for _, share in found) == pytest.approx(1)
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True)
    salts = likely_formulas(system_elements("Cl-Na"), PrototypeAtlas.default(), (1, 12), 3)
    assert salts[0][0].reduced_formula == "NaCl"
    with pytest.raises(InputError, match="max_atoms"):
        likely_formulas(system_elements("H-Li-Na-K-Rb-Cs-F-Cl"), PrototypeAtlas.default(), (1, 8), 3)


def test_a_system_shares_its_structures() -> None:
    groups = reader(known=True, high=12).groups("Na-Cl", 3, 10)
    assert sum(group.want for group in groups) == 10 and groups[0].want == max(g.want for g in groups)
    assert all(group.owner == 3 for group in groups)
    assert parse_composition("NaCl") == groups[0].cells[0].composition.reduced_composition


def test_portions_are_whole_and_complete() -> None:
    assert portions(10, [0.55, 0.3, 0.15]) == [6, 3, 1]
    assert portions(1, [0.4, 0.35, 0.25]) == [1, 0, 0]
    assert portions(0, [0.5, 0.5]) == [0, 0]
