"""Two descriptions of one crystal are the same; stackings of the same layers are not."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.prototypes.fingerprint import NEIGHBOURS, Distinct, fingerprint

FCC = Structure(Lattice.from_parameters(2.5, 2.5, 2.5, 60, 60, 60), ["Co"], [[0, 0, 0]])
HCP = Structure(
    Lattice.hexagonal(2.5, 2.5 * (8 / 3) ** 0.5), ["Co"] * 2, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]
)
DHCP = Structure(
    Lattice.hexagonal(2.5, 5 * (8 / 3) ** 0.5),
    ["Co"] * 4,
    [[0, 0, 0], [1 / 3, 2 / 3, 0.25], [0, 0, 0.5], [2 / 3, 1 / 3, 0.75]],
)
BLENDE = Structure(
    Lattice.from_parameters(3.8, 3.8, 3.8, 60, 60, 60), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]
)
WURTZITE = Structure(
    Lattice.hexagonal(3.8, 3.8 * (8 / 3) ** 0.5),
    ["Zn"] * 2 + ["S"] * 2,
    [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]],
)


@pytest.mark.parametrize("kinds", [(FCC, HCP, DHCP), (BLENDE, WURTZITE)])
def test_stackings_of_the_same_layers_differ(kinds: tuple[Structure, ...]) -> None:
    new = Distinct()
    assert all(new(structure) for structure in kinds)
    assert not any(new(structure) for structure in kinds)


@pytest.mark.parametrize("structure", [HCP, WURTZITE])
def test_a_crystal_is_itself_in_any_cell_size_and_a_little_off(structure: Structure) -> None:
    new = Distinct()
    assert new(structure)
    bent = structure.copy().perturb(0.03)
    turned = structure.copy().make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    larger = structure.copy().scale_lattice(1.3 * structure.volume)
    for other in (bent, turned, larger):
        assert other is not None and not new(other)


def test_distances_are_those_of_pymatgen() -> None:
    found = fingerprint(WURTZITE) * (WURTZITE.volume / len(WURTZITE)) ** (1 / 3)
    near = WURTZITE.get_neighbors(WURTZITE[0], 9.0)
    sulphur = np.sort([n.nn_distance for n in near if n.specie.symbol == "S"])[:NEIGHBOURS]
    np.testing.assert_allclose(found[1, 0], sulphur, atol=1e-6)  # elements by atomic number: S, Zn
