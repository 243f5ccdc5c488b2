"""Exploring a system: which formulas, what is kept, how they stand to the known hull, and going on."""

import csv
import json
import math

import pytest
from matplotlib.image import imread
from pymatgen.core import Composition, Lattice, Structure

from crystalml.errors import CompositionError, InputError, UnsupportedError
from crystalml.hull.explore import candidates, chemical_system, explore
from crystalml.metrics.stability import HullTable
from crystalml.relax import relax

HULL = HullTable({"NaCl": -2.0, "Na3Cl": -0.2}, {"name": "toy"})


def cell(formula: str, a: float = 6.0) -> Structure:
    """Any crystal of a formula: its atoms on a line of a long cell."""
    species = [e.symbol for e, n in Composition(formula).items() for _ in range(int(n))]
    lattice = Lattice.tetragonal(4.0, a * len(species) / 2)
    return Structure(lattice, species, [[0, 0, k / len(species)] for k in range(len(species))])


def drawn(formula: str, n: int) -> list[Structure]:
    return [cell(formula, 6.0 + 0.3 * k) for k in range(n)]


@pytest.fixture
def search(tiny_potential):
    def run(system="Na-Cl", draw=drawn, **settings):
        settings = {"energy_model": tiny_potential(), "hull": HULL, "n": 2, "max_steps": 2, **settings}
        return explore(system, draw, progress=False, device="cpu", **settings)

    return run


@pytest.fixture
def one_below(monkeypatch):
    """Every sample relaxes to -1 eV/atom."""

    def relaxed(structures, *_, **__):
        return [
            {
                "final_structure": s,
                "energy": -1.0 * len(s),
                "converged": True,
                "spacegroup_after": "",
                "error": "",
            }
            for s in structures
        ]

    monkeypatch.setattr("crystalml.hull.explore.relax", relaxed)


# --- systems and formulas ---------------------------------------------------------------------------------
def test_systems() -> None:
    assert chemical_system("Li-Fe-O") == chemical_system(["O", "Fe", "Li", "Fe"]) == ("Fe", "Li", "O")
    assert chemical_system("D-O") == ("H", "O")
    for wrong in ("Li-Xx", "", "LiFeO", "Li, O"):
        with pytest.raises(InputError, match="Li-Fe-O"):
            chemical_system(wrong)


def test_candidates_are_all_small_formulas_each_once() -> None:
    found = candidates(["Na", "Cl"], {}, 4, 100)
    assert sorted(found) == sorted(["NaCl", "Na2Cl", "NaCl2", "Na3Cl", "NaCl3"])
    ternary = candidates(["Li", "Fe", "O"], {}, 5, 1000)
    assert all(Composition(f).num_atoms <= 5 for f in ternary) and len(set(ternary)) == len(ternary)
    assert {len(Composition(f)) for f in ternary} == {2, 3}


def test_candidates_begin_with_what_is_known_and_then_neutral() -> None:
    found = candidates(["Na", "Cl"], {"Na3Cl": -0.1, "Na": 0.0, "Cl": 0.0}, 4, 3)
    assert found[0] == "Na3Cl" and len(found) == 3
    pytest.importorskip("smact", reason="neutrality needs the extra `metrics`")
    assert found[1] == "NaCl"


# --- what comes out ---------------------------------------------------------------------------------------
def test_energies_are_those_of_relax_and_the_hull_is_the_tables(search, tiny_potential) -> None:
    found = search(formulas=["NaCl", "NaCl3"])
    for phase in found.phases:
        results = relax(drawn(phase.formula, 2), tiny_potential(), max_steps=2, progress=False)
        best = min(r["energy"] / len(r["final_structure"]) for r in results)
        assert phase.formation_energy_per_atom == pytest.approx(best, abs=1e-6) and phase.samples == 2
        expected = HULL.above([Composition(phase.formula)], [best])[0]
        assert phase.energy_above_hull == pytest.approx(expected, abs=1e-6)
    salt = next(phase for phase in found.phases if phase.formula == "NaCl")
    assert salt.known_energy_per_atom == -2.0
    mean, mae, count = found.shift()
    assert count == 1 and mean == pytest.approx(salt.formation_energy_per_atom + 2.0) and mae == abs(mean)
    above = [phase.energy_above_hull for phase in found.phases]
    assert above == sorted(above)


def test_a_sample_below_the_known_phases_is_on_the_new_hull(search, one_below) -> None:
    high = search(formulas=["NaCl"], hull=HullTable({"NaCl": -1.5}))
    low = search(formulas=["NaCl"], hull=HullTable({"NaCl": -0.6}))
    assert [p.on_new_hull for p in high.phases + low.phases] == [False, True]
    assert high.phases[0].energy_above_hull == pytest.approx(0.5)
    assert low.phases[0].energy_above_hull == pytest.approx(-0.4)


def test_one_failing_formula_does_not_stop_the_others(search) -> None:
    def fussy(formula, n):
        if formula == "NaCl3":
            raise CompositionError("too odd for me")
        return [] if formula == "Na2Cl" else drawn(formula, n)

    found = search(draw=fussy, formulas=["NaCl3", "Na2Cl", "NaCl"])
    assert found.phases[0].formula == "NaCl" and found.phases[0].error == ""
    errors = {phase.formula: phase.error for phase in found.phases}
    assert "too odd" in errors["NaCl3"] and "nothing" in errors["Na2Cl"]


def test_a_stopped_search_goes_on(search, tmp_path) -> None:
    asked = []

    def stops(formula, n):
        asked.append(formula)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return drawn(formula, n)

    settings = {"formulas": ["NaCl", "NaCl3", "Na2Cl"], "out": tmp_path, "name": "mine"}
    with pytest.raises(KeyboardInterrupt):
        search(draw=stops, **settings)
    again = search(draw=stops, **settings)
    assert asked == ["NaCl", "NaCl3", "NaCl3", "Na2Cl"]
    whole = search(formulas=settings["formulas"])
    assert [p.formation_energy_per_atom for p in again.phases] == pytest.approx(
        [p.formation_energy_per_atom for p in whole.phases], abs=1e-9
    )
    with pytest.raises(InputError, match="n = 2"):
        search(draw=stops, n=3, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formulas": ["KCl"]}, "K"),
        ({"n": 0}, "n 0"),
        ({"system": "Na-Qq"}, "Qq"),
        ({"max_formula_atoms": 1}, "2"),
        ({"strategy": "magic", "draw": None}, "'magic'"),
    ],
)
def test_bad_requests_are_refused(search, settings, message) -> None:
    with pytest.raises(InputError, match=message):
        search(**settings)


# --- files and pictures -----------------------------------------------------------------------------------
def test_everything_is_written(search, tmp_path) -> None:
    found = search(formulas=["NaCl", "NaCl3"])
    names = {path.name for path in found.save(tmp_path)}
    assert names == {"phases.csv", "phases.json", "structures.cif.zip", "structures.extxyz", "hull.png"}
    with (tmp_path / "phases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["formula"] for row in rows] == [phase.formula for phase in found.phases]
    assert {row["formula"]: row["known"] for row in rows} == {"NaCl": "True", "NaCl3": "False"}
    content = json.loads((tmp_path / "phases.json").read_text())
    assert content["system"] == "Cl-Na" and content["known"]["NaCl"] == -2.0
    assert content["phases"][0]["energy_above_hull"] == pytest.approx(found.phases[0].energy_above_hull)
    from crystalml.convert import read_structures

    energies = [s.properties for _, s in read_structures(tmp_path / "structures.cif.zip").structures]
    assert len(energies) == 2


@pytest.mark.parametrize("system", ["Na-Cl", "Na-Cl-O"])
def test_samples_can_be_told_from_known_phases_in_the_picture(search, one_below, tmp_path, system) -> None:
    """A sample that makes the hull is orange; without it there is no orange outside the legend."""
    import numpy as np

    def orange(hull: HullTable) -> int:
        found = search(system, formulas=["NaCl"], hull=hull)
        found.draw(tmp_path / "hull.png")
        pixels = imread(tmp_path / "hull.png")[..., :3]
        return int((np.abs(pixels - [0xC4 / 255, 0x51 / 255, 0x1F / 255]).max(axis=-1) < 0.02).sum())

    assert orange(HullTable({"NaCl": -0.6})) > orange(HullTable({"NaCl": -1.5})) > 0


def test_four_elements_have_no_plane(search, tmp_path) -> None:
    found = search("Na-Cl-O-H", formulas=["NaCl"])
    assert "hull.png" not in {path.name for path in found.save(tmp_path)}
    with pytest.raises(UnsupportedError, match="4 elements"):
        found.draw(tmp_path / "hull.png")
    assert not math.isnan(found.phases[0].energy_above_hull)
