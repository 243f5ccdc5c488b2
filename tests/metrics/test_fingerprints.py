"""Fingerprints of coverage: beside matminer's own numbers, and the invariances that a crystal has."""

import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from crystalml.metrics.fingerprints import composition_fingerprint, structure_fingerprint

GOLDEN = json.loads(Path(__file__).with_name("matminer.json").read_text())
THIRD = 1 / 3


def cases() -> list[Structure]:
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    places = np.random.default_rng(0).random((6, 3)).round(3)
    return [
        salt.get_primitive_structure(),
        Structure(
            Lattice.cubic(3.9),
            ["Sr", "Ti", "O", "O", "O"],
            [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
        Structure(
            Lattice.hexagonal(2.46, 6.7),
            ["C"] * 4,
            [[0, 0, 0.25], [0, 0, 0.75], [THIRD, 2 * THIRD, 0.25], [2 * THIRD, THIRD, 0.75]],
        ),
        Structure(Lattice.from_parameters(5, 6, 7, 80, 95, 105), ["Li", "Fe", "P", "O", "O", "O"], places),
    ]


@pytest.mark.parametrize("place", range(4))
def test_both_are_matminers(place: int) -> None:
    structure = cases()[place]
    found = structure_fingerprint(structure)
    assert found is not None and found.shape == (61,)
    np.testing.assert_allclose(found, GOLDEN["structures"][place], atol=1e-7)
    plain = composition_fingerprint(structure.composition, standard=False)
    np.testing.assert_allclose(plain, GOLDEN["compositions"][place], rtol=1e-6, atol=1e-6)


def test_a_supercell_is_the_same_crystal() -> None:
    salt = cases()[0]
    np.testing.assert_allclose(
        structure_fingerprint(salt), structure_fingerprint(salt * (1, 1, 2)), atol=1e-9
    )
    np.testing.assert_allclose(
        composition_fingerprint(salt.composition), composition_fingerprint((salt * 2).composition), atol=1e-12
    )


def test_an_octahedron_has_six_neighbours() -> None:
    """All weight of rock salt lies on coordination number 6, and its motif is the octahedron."""
    found = structure_fingerprint(cases()[0])
    assert found is not None
    # A weight and its motifs for each number: 2, 6, 4, 6 and 4 entries come before those of 6.
    weight, octahedral = found[22], found[24]
    assert [weight, octahedral] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_no_neighbours_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("No Voronoi neighbors found")

    monkeypatch.setattr("pymatgen.analysis.local_env.CrystalNN.get_nn_data", fail)
    assert structure_fingerprint(cases()[0]) is None


def test_pure_elements_have_no_spread() -> None:
    plain = composition_fingerprint(Composition("Fe3"), standard=False).reshape(22, 6)
    minimum, maximum, width, mean, deviation, mode = plain.T
    assert (width == 0).all() and (deviation == 0).all()
    assert (minimum == maximum).all() and (minimum == mean).all() and (minimum == mode).all()
    assert minimum[0] == 26
