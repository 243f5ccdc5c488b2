"""Algorithm 2 of DAO: copies of test crystals are found in any guise, other crystals stay."""

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from crystalml.datasets.splits import deduplicate, random_split
from crystalml.errors import InputError


def rutile() -> Structure:
    """TiO2, P4_2/mnm; a = 4.594, c = 2.959 A, u = 0.305 (Abrahams and Bernstein 1971)."""
    return Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )


def anatase() -> Structure:
    """TiO2, I4_1/amd; a = 3.785, c = 9.514 A, u = 0.2081 (Howard et al. 1991)."""
    return Structure.from_spacegroup(
        "I4_1/amd", Lattice.tetragonal(3.785, 9.514), ["Ti", "O"], [[0, 0, 0], [0, 0, 0.2081]]
    )


def rattled(structure: Structure, distance: float) -> Structure:
    rng = np.random.default_rng(0)
    copy = structure.copy()
    for site in range(len(copy)):
        step = rng.normal(size=3)
        copy.translate_sites(site, distance * step / np.linalg.norm(step), frac_coords=False)
    return copy


def permuted_niggli(structure: Structure) -> Structure:
    """The same crystal: Niggli cell, axes exchanged, atoms shuffled, origin moved."""
    cell = structure.get_reduced_structure()
    axes = [1, 2, 0]
    order = np.random.default_rng(1).permutation(len(cell))
    return Structure(
        Lattice(cell.lattice.matrix[axes]),
        [cell[i].specie for i in order],
        [cell[i].frac_coords[axes] + [0.1, 0.2, 0.3] for i in order],
    )


def cassiterite() -> Structure:
    copy = rutile()
    copy.replace_species({"Ti": "Sn"})
    return copy


CANDIDATES = [
    ("rattled", rattled(rutile(), 0.01)),
    ("anatase", anatase()),
    ("permuted", permuted_niggli(rutile())),
    ("supercell", rutile() * (1, 1, 2)),
    ("t0", anatase()),
    ("tin", cassiterite()),
]


@pytest.mark.parametrize("processes", [1, 2])
def test_copies_go_and_others_stay(processes: int) -> None:
    result = deduplicate(CANDIDATES, [("t0", rutile())], processes=processes)
    assert [CANDIDATES[i][0] for i in result.kept] == ["anatase", "tin"]
    assert result.removed == dict.fromkeys(("rattled", "permuted", "supercell", "t0"), "t0")
    assert result.unsure == []


def test_no_tests_remove_nothing() -> None:
    assert deduplicate(CANDIDATES, []).kept == list(range(len(CANDIDATES)))


def test_what_cannot_be_decided_in_time_is_dropped() -> None:
    result = deduplicate(CANDIDATES[:2], [("t0", rutile())], timeout=1e-6)
    assert (result.kept, result.unsure) == ([], ["rattled", "anatase"])


def test_random_split_covers_everything_once() -> None:
    parts = random_split(1003, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=3)
    assert [len(part) for part in parts.values()] == [802, 101, 100]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1003))
    again = random_split(1003, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=3)
    other = random_split(1003, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=4)
    assert all((parts[name] == again[name]).all() for name in parts)
    assert (parts["train"] != other["train"]).any()
    assert len(random_split(10, {"a": 0.5}, seed=0)["a"]) == 5


@pytest.mark.parametrize("shares", [{}, {"a": 0.7, "b": 0.7}, {"a": -0.1}])
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="shares"):
        random_split(10, shares, seed=0)
