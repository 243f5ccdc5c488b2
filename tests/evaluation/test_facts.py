"""What is worked out of single crystals: in order, NaN or None where it cannot be, never an exception."""

import math

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.groups import SpaceGroup

from crystalml.evaluation.facts import Energies, Relaxer, basic, crystal_system, from_plain, spacegroup
from crystalml.predict import Predictor


def test_geometry_of_salt(salts) -> None:
    found = basic(salts[0])
    assert found["valid_structure"] and found["spacegroup"] == 225 and found["elements"] == 2
    assert found["volume_per_atom"] == pytest.approx(5.64**3 / 8)
    broken = Structure(Lattice.cubic(5), ["Na", "Cl"], [[0] * 3, [0.01] * 3])
    assert not basic(broken)["valid_structure"] and basic(broken)["spacegroup"] == 1
    sheet = Structure([[5, 0, 0], [0, 5, 0], [5, 5, 1e-6]], ["Na"], [[0] * 3])
    assert not basic(sheet)["valid_structure"] and spacegroup(sheet) >= 1


def test_crystal_systems_are_pymatgens() -> None:
    for number in (1, 2, 3, 15, 16, 74, 75, 142, 143, 167, 168, 194, 195, 230):  # the ends of each
        assert crystal_system(number) == SpaceGroup.from_int_number(number).crystal_system


def test_energies_come_in_order_and_are_nan_where_there_are_none(tiny_potential, salts) -> None:
    model = tiny_potential()
    dense = salts[0].copy()
    dense.scale_lattice(0.4)
    expected = [float(Predictor(model)(_batch(s), forces=False)["energy_per_atom"]) for s in salts]
    found = list(Energies(model)([*salts, dense]))
    assert found[:5] == pytest.approx(expected, abs=1e-5) and math.isnan(found[5])
    model.card = {"elements": ["Na", "Cl", "K"]}
    known = [not math.isnan(e) for e in Energies(model)(salts)]
    assert known == [True, True, False, False, False]


def _batch(structure):
    from crystalml.convert import to_batch

    return to_batch(structure)


def test_relaxed_crystals_are_kept_as_plain_data(tiny_potential, salts) -> None:
    import json

    broken = Structure(Lattice.cubic(5), ["Na", "Cl"], [[0] * 3, [0.01] * 3])
    rows = list(Relaxer(tiny_potential(), 2)([salts[0], broken, salts[1]]))
    assert rows[1] is None and rows[0]["energy_per_atom"] != rows[2]["energy_per_atom"]
    final = from_plain(json.loads(json.dumps(rows[0])))
    assert final.reduced_formula == "NaCl" and len(final) == 2
    energy = float(Predictor(tiny_potential())(_batch(final), forces=False)["energy_per_atom"])
    assert energy == pytest.approx(rows[0]["energy_per_atom"], abs=1e-4)
