"""The metric on elements learns from company, and falls back on properties."""

from dataclasses import replace

import numpy as np
from pymatgen.core import Lattice, Structure
from scipy.special import logsumexp

from crystalml.elements import atomic_number
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.align import Coloured
from crystalml.prototypes.cluster import Clusters
from crystalml.prototypes.describe import Description, describe
from crystalml.prototypes.similarity import ASKED, LEAST, Similarity, learn
from crystalml.prototypes.tables import tables_of

LEFT = ["Na", "Fe", "Xe", "U", "C", "Hg", "Sc", "Te"]  # unlike elements, put together at random
RIGHT = ["K", "Co", "Kr", "Pb", "N", "Zn", "Y", "Se"]


def crystal(kind: str, first: str, second: str) -> Description:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    found = Structure.from_spacegroup(kind, Lattice.cubic(5.0), [first, second], sites)
    out = describe(found.lattice.matrix, found.frac_coords, np.array(found.atomic_numbers))
    assert out is not None
    return out


def worlds() -> Clusters:
    """Elements of LEFT meet O, S, ... in rock salt only, those of RIGHT in caesium chloride only."""
    clusters = Clusters()
    salt, chloride = crystal("Fm-3m", "Na", "Cl"), crystal("Pm-3m", "Na", "Cl")
    for anion in ("O", "S", "F", "Cl", "Br", "I", "P", "As", "Sb", "Bi", "Si", "Ge", "Al", "Ga", "In"):
        for a, b in zip(LEFT, RIGHT, strict=True):
            for kind, cation in ((salt, a), (chloride, b)):
                species = np.array([atomic_number(cation), atomic_number(anion)])
                clusters.add(replace(kind, species=species))
    return clusters


def test_elements_that_never_share_sites_part() -> None:
    tables = tables_of(worlds().prototypes())
    assert int(tables.tuples.sum()) >= LEAST
    found = learn(tables, epochs=8, rate=0.05, seed=1)
    again = learn(tables, epochs=8, rate=0.05, seed=1)
    np.testing.assert_array_equal(found.embedding, again.embedding)
    left, right = (np.array([atomic_number(e) for e in side]) for side in (LEFT, RIGHT))

    def contrast(similarity: Similarity) -> float:
        """Na from K, Fe from Co, ..., over the mean distance in one world."""
        inside = [similarity.distances[np.ix_(side, side)].mean() for side in (left, right)]
        return float(similarity.distances[left, right].mean() / np.mean(inside))

    assert contrast(found) > 2 * contrast(Similarity.of_descriptors())


def test_kernels_have_long_tails_and_keep_them() -> None:
    near, far = np.array([0.1]), np.array([40.0])
    gauss = Similarity.of_descriptors()
    student = replace(gauss, tail=3.0)
    np.testing.assert_allclose(student.log_kernel(near, 2, 1.0), gauss.log_kernel(near, 2, 1.0), rtol=0.02)
    assert student.log_kernel(far, 2, 1.0) > gauss.log_kernel(far, 2, 1.0) / 4
    for similarity in (gauss, student):
        again = Similarity.from_tensors(similarity.tensors())
        np.testing.assert_allclose(again.log_kernel(far, 2, 0.4), similarity.log_kernel(far, 2, 0.4))


def test_learned_likeness_beats_properties() -> None:
    """Crystals' own prototypes are likelier under what was learned than under plain properties."""
    tables, learned = PrototypeAtlas.default().tables, PrototypeAtlas.default().similarity
    counts = (1, 1, 3)
    elements, owner, weight = tables.stacked(counts)
    rows = np.flatnonzero((np.bincount(owner)[owner] > 1) & (weight >= ASKED))
    shares: dict[str, list[float]] = {"learned": [], "properties": []}
    for name, similarity in (("learned", learned), ("properties", Similarity.of_descriptors())):
        for row in np.random.default_rng(0).choice(rows, 100, replace=False).tolist():
            score = similarity.scores(elements[row], elements, weight)
            score[row] = -np.inf
            shares[name].append(logsumexp(score[owner == owner[row]]) - logsumexp(score))
    assert np.mean(shares["learned"]) > np.mean(np.maximum(shares["properties"], -20)) + 0.1


def test_few_crystals_leave_the_properties_to_speak() -> None:
    clusters = Clusters()
    clusters.add(crystal("Fm-3m", "Na", "Cl"))
    found = learn(tables_of(clusters.prototypes()))
    np.testing.assert_array_equal(found.embedding, Similarity.of_descriptors().embedding)
    z = {name: atomic_number(name) for name in ("Na", "K", "Cl", "Br", "Fe", "Co")}
    for near, far in (("K", "Cl"), ("K", "Br"), ("K", "Fe")):
        assert found.distances[z["Na"], z[near]] < found.distances[z["Na"], z[far]]
    assert found.distances[z["Cl"], z["Br"]] < found.distances[z["Cl"], z["Fe"]]


def test_colours_of_twins_stand_in_one_order() -> None:
    """The two sites of rock salt are the same site: the less electronegative element comes first."""
    clusters = Clusters()
    for a, b in (("Na", "Cl"), ("Cl", "K"), ("F", "Cs"), ("O", "Mg")):
        clusters.add(crystal("Fm-3m", a, b))
    (salt,) = clusters.prototypes()
    assert [member.elements for member in salt.members] == [(11, 17), (19, 17), (55, 9), (12, 8)]
    assert tables_of([salt]).twins(0).tolist() == [0, 0]
    assert Coloured.of(crystal("Fm-3m", "Cl", "Na")).elements == (11, 17)
