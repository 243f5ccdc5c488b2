"""Hulls: a worked example by hand, pymatgen's own numbers, files, and S.U.N."""

import math

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from crystalml.errors import FileReadError, InputError
from crystalml.metrics.stability import HullTable, sun

# A toy binary and ternary; eV/atom. Mg2O would lie at -0.8 on the line between Mg and MgO: it is 0.2 above.
TOY = {"MgO": -1.2, "Mg2O": -0.6, "MgO2": -0.9, "FeO": -1.0, "Fe2O3": -1.5, "MgFeO2": -1.6}


def above(table: HullTable, formula: str, energy: float) -> float:
    return float(table.above([Composition(formula)], [energy])[0])


def test_worked_by_hand() -> None:
    """Between O (0) and MgO (-1.2 at 1/2), MgO2 (2/3 O) lies on the line at -1.2 (1/3)/(1/2) = -0.8."""
    table = HullTable.from_entries(["MgO"], [-1.2])
    assert above(table, "MgO2", -0.9) == pytest.approx(-0.1)
    assert above(table, "MgO2", -0.5) == pytest.approx(0.3)
    assert above(table, "Mg2O2", -1.2) == pytest.approx(0, abs=1e-12)
    assert above(table, "Mg", 0.25) == pytest.approx(0.25)  # elements are at 0


def test_charges_and_deuterium_are_those_of_their_elements() -> None:
    table = HullTable.from_entries(["Li2O", "H2O"], [-2.0, -1.0])
    charged = [
        Composition({"Li+": 2, "O2-": 1}),
        Composition("D2O"),
        Composition({"H+": 1, "D+": 1, "O2-": 1}),
    ]
    assert table.above(charged, [-1.5, -1.0, -0.5]).tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert table.phases(["D", "O"]) == table.phases(["H", "O"])


def test_pymatgens_own_numbers() -> None:
    table = HullTable.from_entries(TOY, TOY.values())
    entries = [PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in TOY.items()]
    diagram = PhaseDiagram([*entries, *(PDEntry(Composition(e), 0) for e in ("Mg", "Fe", "O"))])
    for formula, energy in [("MgFeO2", -1.4), ("Mg5FeO4", -1.0), ("Fe3O4", -1.3), ("Mg2O", -0.6)]:
        new = PDEntry(Composition(formula), energy * Composition(formula).num_atoms)
        expected = diagram.get_e_above_hull(new, allow_negative=True, on_error="raise")
        assert above(table, formula, energy) == pytest.approx(expected, abs=1e-9)


def test_only_subsystems_count_and_the_lowest_energy_wins() -> None:
    table = HullTable.from_entries([*TOY, "O1Mg1", "NaCl"], [*TOY.values(), -0.3, -2.0])
    assert table.energies["MgO"] == -1.2
    assert set(table.phases(["Mg", "O"])) == {"Mg", "O", "MgO", "Mg2O", "MgO2"}
    assert above(table, "MgO", -1.2) == pytest.approx(0, abs=1e-12)
    corners = table.diagram(["Na", "Cl"]).stable_entries
    assert {entry.composition.reduced_formula for entry in corners} == {
        "Na", "Cl2", "NaCl",
    }  # fmt: skip


def test_many_at_once_over_processes_and_gaps() -> None:
    table = HullTable.from_entries(TOY, TOY.values())
    compositions = [Composition(f) for f in ("MgFeO2", "Mg", "FeO", "Fe3O4", "MgFeO2")]
    energies = [-1.0, 0.1, math.nan, -1.0, -1.6]
    seen: list[int] = []
    found = table.above(compositions, energies, processes=2, progress=seen.append)
    assert found[[1, 4]] == pytest.approx([0.1, 0], abs=1e-9) and np.isnan(found[2]) and found[0] > 0.5
    np.testing.assert_array_equal(found, table.above(compositions, energies))
    assert seen[-1] == 5


def test_pruning_leaves_the_hull_as_it_is() -> None:
    table = HullTable.from_entries(TOY, TOY.values())
    small = table.pruned()
    assert set(small.energies) < set(TOY) and "MgO2" in small.energies
    for formula in ("MgFeO2", "Mg3FeO3", "Mg2O", "Fe3O4"):
        assert above(small, formula, 0) == pytest.approx(above(table, formula, 0), abs=1e-9)
    assert set(table.pruned(10).energies) == set(TOY)


# --- files ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["hull.json", "hull.json.xz"])
def test_a_table_is_kept(tmp_path, name) -> None:
    table = HullTable.from_entries(TOY, TOY.values(), {"name": "toy"})
    table.save(tmp_path / name)
    again = HullTable.load(tmp_path / name)
    assert again == table and again.card["name"] == "toy"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["entries.csv", "entries.parquet"])
def test_users_tables_are_read(tmp_path, name) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"formula": ["Mg2O2", "Fe4O4"], "energy_per_atom": [-1.2, -1.0]})
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(tmp_path / name)
    assert HullTable.load(tmp_path / name).energies == {"MgO": -1.2, "FeO": -1.0}
    frame.rename(columns={"energy_per_atom": "e"}).to_csv(tmp_path / "other.csv")
    with pytest.raises(FileReadError, match="formation_energy_per_atom"):
        HullTable.load(tmp_path / "other.csv")


def test_bad_files_are_refused(tmp_path) -> None:
    with pytest.raises(FileReadError, match="hull-table"):
        HullTable.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"phases": {}}')
    with pytest.raises(FileReadError, match="no hull table"):
        HullTable.load(tmp_path / "bad.json")
    (tmp_path / "bad.txt").write_text("Li 0")
    with pytest.raises(FileReadError, match=r"\.parquet or \.csv"):
        HullTable.load(tmp_path / "bad.txt")
    with pytest.raises(InputError, match="Xy3"):
        HullTable.from_entries(["Xy3"], [0.0])
    with pytest.raises(InputError, match="Xy"):
        HullTable.default().phases(["Xy", "O"])


# --- the shipped table ------------------------------------------------------------------------------------
def test_the_shipped_hull_knows_common_chemistry() -> None:
    """Formation energies within 0.1 eV/atom of the experimental enthalpies, and nothing far below them."""
    table = HullTable.default()
    assert len(table) > 25_000 and "CC BY 4.0" in table.card["license"]
    measured = {"NaCl": -2.13, "MgO": -3.12, "Al2O3": -3.47, "LiF": -3.20}  # CRC Handbook, 298 K
    for formula, experiment in measured.items():
        assert table.energies[formula] == pytest.approx(experiment, abs=0.1)
        assert above(table, formula, table.energies[formula]) == pytest.approx(0, abs=0.03)
    stable = {entry.composition.reduced_formula for entry in table.diagram(["Na", "Cl"]).stable_entries}
    assert stable == {"Na", "Cl2", "NaCl"}


# --- S.U.N. -----------------------------------------------------------------------------------------------
def test_sun_counts_each_group_once() -> None:
    stable = [False, True, True, True, True, False]
    group = [0, 0, 0, 3, 4, 5]
    known = [None, None, None, "mp-1", None, None]
    assert sun(stable, group, known).tolist() == [False, True, False, False, True, False]
