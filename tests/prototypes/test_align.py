"""Crystals in other settings lie on each other; crystals of other types do not."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.prototypes.align import Closeness, Coloured, place, regroupings
from crystalml.prototypes.describe import describe


def coloured(structure: Structure) -> Coloured:
    numbers = np.array(structure.atomic_numbers)
    found = describe(structure.lattice.matrix, structure.frac_coords, numbers)
    assert found is not None
    return Coloured.of(found)


def shuffled(structure: Structure, seed: int) -> Structure:
    """Another cell (primitive or doubled), origin, orientation and order of the atoms of the same crystal."""
    generator = np.random.default_rng(seed)
    out = structure.get_primitive_structure() if seed % 2 else structure.copy()
    if seed % 3 == 0:
        out.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    order = generator.permutation(len(out))
    frac = (out.frac_coords + generator.random(3))[order]
    return Structure(Lattice(out.lattice.matrix @ turn), [out.species[i] for i in order], frac)


@pytest.mark.parametrize("seed", range(4))
def test_any_setting_lies_on_the_crystal_itself(members: list[Structure], seed: int) -> None:
    for structure in members:
        first, second = coloured(structure), coloured(shuffled(structure, seed))
        assert first.key == second.key, structure.formula
        found = place(first, second, tuple(range(len(first.elements))), Closeness())
        assert found is not None, structure.formula
        assert found.worst < 1e-3
        np.testing.assert_allclose(found.cell, first.crystal.cell, rtol=1e-3)


def test_free_coordinates_must_be_close() -> None:
    sites = [[0, 0, 0], [0, 0, 0.5], [0, 0, 0.11]]
    cell = Lattice.hexagonal(2.9, 17.0)
    first = Structure.from_spacegroup("R-3m", cell, ["Cu", "Al", "O"], sites)
    sites[2][2] = 0.23
    second = Structure.from_spacegroup("R-3m", cell, ["Cu", "Al", "O"], sites)
    assert place(coloured(first), coloured(second), (0, 1, 2), Closeness()) is None


def test_regroupings_keep_their_labels() -> None:
    found = list(regroupings((1, 1, 3, 3)))
    assert found[0] == (0, 1, 2, 3)
    assert sorted(found) == [(0, 1, 2, 3), (0, 1, 3, 2), (1, 0, 2, 3), (1, 0, 3, 2)]
