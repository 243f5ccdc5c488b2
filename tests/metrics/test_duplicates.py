"""Uniqueness and novelty: what must not matter (order, cell, orientation, origin) and what must."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.core.operations import SymmOp

from crystalml.datasets.arrays import Arrays
from crystalml.metrics.duplicates import KnownCrystals, equal_groups


def salt(a: float = 5.64) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


def caesium() -> Structure:
    return Structure(Lattice.cubic(3.4), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


def zincblende() -> Structure:
    return Structure.from_spacegroup("F-43m", Lattice.cubic(6.1), ["Na", "Cl"], [[0] * 3, [0.25] * 3])


def disguises() -> list[Structure]:
    """Rock salt as a supercell, turned, moved, permuted, mirrored and shaken a little."""
    crystal = salt()
    turned = crystal.copy()
    turned.apply_operation(SymmOp.from_axis_angle_and_translation([1, 2, 3], 40))
    moved = crystal.copy()
    moved.translate_sites(range(len(moved)), [0.11, 0.27, 0.38])
    shaken = crystal.copy()
    shaken.perturb(0.02)
    return [
        crystal * (1, 1, 2),
        turned,
        moved,
        Structure.from_sites(crystal[::-1]),
        crystal.get_primitive_structure(),
        shaken,
        Structure(crystal.lattice, crystal.species, -crystal.frac_coords),
    ]


def test_disguises_are_duplicates() -> None:
    assert set(equal_groups([salt(), *disguises()])) == {0}


def test_other_crystals_are_not() -> None:
    other = Structure(
        salt().lattice, ["K" if s.symbol == "Na" else "Cl" for s in salt().species], salt().frac_coords
    )
    assert equal_groups([salt(), caesium(), zincblende(), other, None, None]) == [0, 1, 2, 3, 4, 5]


def test_the_share_of_unique_ones_ignores_order_and_counts_copies_once() -> None:
    crystals = [salt(), caesium(), zincblende()] * 3 + disguises()
    rng = np.random.default_rng(0)
    for _ in range(3):
        shuffled = [crystals[i] for i in rng.permutation(len(crystals))]
        first = equal_groups(shuffled)
        assert sum(place == i for i, place in enumerate(first)) == 3
        assert all(first[place] == place <= i for i, place in enumerate(first))  # named by the earliest
        for i, place in enumerate(first):  # and members of one group have one type
            assert shuffled[i].get_space_group_info(0.1)[1] == shuffled[place].get_space_group_info(0.1)[1]


def test_chains_are_one_group_in_any_order() -> None:
    """a matches b and b matches c, but a not c: a chain, whichever comes first."""

    def stretched(gap: float) -> Structure:
        return Structure(Lattice.tetragonal(4, 9), ["Na", "Cl"], [[0, 0, 0], [0, 0, gap]])

    chain = [stretched(gap) for gap in (0.05, 0.27, 0.49)]
    ends = equal_groups([chain[0], chain[2]])
    assert ends == [0, 1], "the law needs ends that do not match"
    for order in ([0, 1, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0]):
        assert set(equal_groups([chain[i] for i in order])) == {0}


def test_processes_do_not_matter() -> None:
    crystals = [salt(), caesium(), *disguises()[:2]]
    seen: list[int] = []
    assert equal_groups(crystals, processes=2, progress=seen.append) == equal_groups(crystals) == [0, 1, 0, 0]
    assert seen[-1] == 4


# --- novelty ----------------------------------------------------------------------------------------------
def test_known_crystals_are_found_in_any_disguise() -> None:
    known = KnownCrystals([caesium(), salt()], ["cscl", "nacl"])
    assert len(known) == 2
    found = known.find([*disguises(), caesium() * 2, zincblende(), None])
    assert found == ["nacl"] * 7 + ["cscl", None, None]


def as_arrays(structures: list[Structure], names: list[str]) -> Arrays:
    return Arrays(
        np.concatenate([s.atomic_numbers for s in structures]).astype(np.int8),
        np.concatenate([s.frac_coords for s in structures]).astype(np.float32),
        np.array([s.lattice.matrix for s in structures], np.float32),
        np.array([len(s) for s in structures]),
        ids=names,
    )


def test_a_table_serves_as_well_and_stays_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 crystals only those with the formula asked for are ever turned into structures."""
    known = KnownCrystals(as_arrays([salt(), caesium()] * 1000, [f"id-{i}" for i in range(2000)]))
    other = Structure(Lattice.cubic(4), ["Cs", "I"], [[0] * 3, [0.5] * 3])
    made: list[int] = []
    whole = KnownCrystals._structure
    monkeypatch.setattr(KnownCrystals, "_structure", lambda self, row: made.append(row) or whole(self, row))
    assert known.find([other]) == [None] and not made
    small = KnownCrystals(as_arrays([caesium(), salt()], ["a", "b"]))
    assert small.find([disguises()[0], other]) == ["b", None] and made == [0, 1]


def test_formulas_are_compared_reduced() -> None:
    known = KnownCrystals([salt().get_primitive_structure()])
    assert [name for name, _ in known.candidates(salt() * 2)] == ["0"]
    assert known.candidates(Structure(Lattice.cubic(4), ["Na", "Na", "Cl"], np.eye(3) / 2)) == []
