"""The shipped atlas: small, attributed, exact, and ignorant of what is held out."""

from itertools import islice

import numpy as np
import pytest
from pymatgen.core import Composition

from crystalml.prototypes import PrototypeAtlas, substitute
from crystalml.prototypes.atlas import DEFAULT
from crystalml.prototypes.corpus import HELD, MAX_BYTES
from crystalml.prototypes.substitute import predictions
from crystalml.prototypes.symmetry import space_group


@pytest.fixture(scope="module")
def atlas() -> PrototypeAtlas:
    return PrototypeAtlas.default()


def test_it_is_small_and_attributed(atlas: PrototypeAtlas) -> None:
    assert DEFAULT.stat().st_size <= MAX_BYTES
    assert len(atlas) > 10_000
    assert "Materials Project" in atlas.card["attribution"]
    assert "CC BY 4.0" in atlas.card["license"]
    assert sum(atlas.card["sources"].values()) >= atlas.card["crystals"] > 100_000


@pytest.mark.parametrize("formula", HELD)
def test_held_formulas_were_never_seen(atlas: PrototypeAtlas, formula: str) -> None:
    for multiple in range(1, 6):
        target, counts = atlas.cell_content(Composition(formula) * multiple)
        elements, _, _ = atlas.tables.stacked(counts)
        assert not (np.sort(elements, 1) == np.sort(target)).all(1).any()


def test_geometry_is_exact(atlas: PrototypeAtlas) -> None:
    for p in np.random.default_rng(0).permutation(len(atlas))[:40].tolist():
        structure = atlas.instantiate(p, atlas.tables.element_tuples(p)[0][0], 15.0)
        assert structure.get_space_group_info(symprec=1e-4)[1] == space_group(int(atlas.tables.hall[p]))[0]
        assert len(structure) == sum(atlas.tables.counts(p))


@pytest.mark.parametrize(
    ("formula", "num_atoms", "group", "volume"),  # cubic Angstrom per atom, measured
    [("NaCl", 2, 225, 22.4), ("CaF2", 3, 225, 13.6), ("SrTiO3", 5, 221, 11.9), ("GaAs", 2, 216, 22.6)],
)
def test_textbook_structures_come_first(
    atlas: PrototypeAtlas, formula: str, num_atoms: int, group: int, volume: float
) -> None:
    best = substitute(formula, 1, num_atoms=num_atoms, atlas=atlas)[0]
    assert best.properties["space_group"] == group
    assert best.volume / len(best) == pytest.approx(volume, rel=0.12)


@pytest.mark.parametrize(("formula", "number"), [({"C": 4}, 186), ({"Si": 2}, 216), ({"Zn": 2, "S": 2}, 186)])
def test_a_space_group_is_that_of_the_crystal_not_of_its_parent(
    atlas: PrototypeAtlas, formula: dict[str, int], number: int
) -> None:
    """One element on both sites of wurtzite or zinc blende has more symmetry than they have."""
    found = list(islice(predictions([formula], atlas, space_group=number), 3))
    groups = [s.get_space_group_info(symprec=1e-3)[1] for s in found]
    assert groups == [s.properties["space_group"] for s in found] == [number] * len(found)
    free = islice(predictions([formula], atlas), 10)
    assert all(s.get_space_group_info(symprec=1e-3)[1] == s.properties["space_group"] for s in free)
