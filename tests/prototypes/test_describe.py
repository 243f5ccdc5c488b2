"""Describing many crystals: the cache resumes, the held formulas stay out."""

from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Structure

from crystalml.datasets.arrays import Arrays
from crystalml.prototypes.corpus import without_held
from crystalml.prototypes.describe import Description, describe_all
from crystalml.prototypes.fingerprint import ALIKE, fingerprint


def arrays(structures: list[Structure]) -> Arrays:
    return Arrays(
        np.concatenate([s.atomic_numbers for s in structures]).astype(np.int8),
        np.concatenate([s.frac_coords for s in structures]),
        np.stack([s.lattice.matrix for s in structures]),
        np.array([len(s) for s in structures]),
        ids=[str(i) for i in range(len(structures))],
    )


def flat(parts: list[list[tuple[str, Description]]]) -> list[tuple[str, Description]]:
    return [item for part in parts for item in part]


def test_a_stopped_run_goes_on(
    members: list[Structure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = flat([next(describe_all(arrays(members), tmp_path, size=7))])  # stopped after one part
    assert len(first) == 7
    whole = flat(list(describe_all(arrays(members), tmp_path, size=7)))
    monkeypatch.setattr("crystalml.prototypes.describe.describe", None)  # now all comes from the folder
    again = flat(list(describe_all(arrays(members), tmp_path, size=7)))
    assert [name for name, _ in again] == [str(i) for i in range(len(members))]
    for (_, a), (_, b) in zip(whole, again, strict=True):
        assert (a.hall, a.volume, a.letters) == (b.hall, b.volume, b.letters)
        np.testing.assert_array_equal(a.sites, b.sites)
        np.testing.assert_array_equal(a.species, b.species)


def test_volume_and_cell_are_those_of_the_crystal(members: list[Structure]) -> None:
    for structure, (_, found) in zip(members, flat(list(describe_all(arrays(members)))), strict=True):
        assert found.volume == pytest.approx(structure.volume / len(structure), rel=1e-4)
        assert found.num_atoms == len(structure.get_primitive_structure())


def test_held_formulas_are_left_out(members: list[Structure]) -> None:
    data = arrays([members[0], _cell({"Cs": 2, "V": 6, "Sb": 10}), _cell({"Cs": 1, "V": 3, "Sb": 4})])
    assert without_held(data).ids == ["0", "2"]


def _cell(amounts: dict[str, int]) -> Structure:
    species = [name for name, count in amounts.items() for _ in range(count)]
    return Structure(np.eye(3) * 9, species, np.random.default_rng(0).random((len(species), 3)))


def test_fingerprints_tell_types_apart_and_nothing_else(members: list[Structure]) -> None:
    salt, chloride, caesium = members[0], members[1], members[4]
    primitive = salt.get_primitive_structure()
    larger = primitive.copy()
    larger.scale_lattice(2 * primitive.volume)

    def apart(one: Structure, other: Structure) -> float:
        return float(np.abs(fingerprint(one) - fingerprint(other)).mean())

    assert apart(primitive, larger) < ALIKE
    assert apart(primitive, primitive.get_reduced_structure()) < ALIKE
    assert apart(salt, chloride) < ALIKE  # elements in the same order, geometry alone
    assert apart(salt, caesium) > ALIKE
