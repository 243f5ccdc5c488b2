"""The metric on elements falls back on properties, and sees elements in company."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from scipy.special import logsumexp

from crystalml.elements import atomic_number
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.align import Coloured
from crystalml.prototypes.cluster import Clusters
from crystalml.prototypes.describe import Description, describe
from crystalml.prototypes.learn import LEAST, _Metric, learn
from crystalml.prototypes.similarity import Evidence, Similarity
from crystalml.prototypes.tables import tables_of

LEFT = ["Na", "Fe", "Xe", "U", "C", "Hg", "Sc", "Te"]  # unlike elements, put together at random
RIGHT = ["K", "Co", "Kr", "Pb", "N", "Zn", "Y", "Se"]


def crystal(kind: str, first: str, second: str) -> Description:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    found = Structure.from_spacegroup(kind, Lattice.cubic(5.0), [first, second], sites)
    out = describe(found.lattice.matrix, found.frac_coords, np.array(found.atomic_numbers))
    assert out is not None
    return out


def gaps(similarity: Similarity) -> np.ndarray:
    """(119, 119) squared distances between elements on their own."""
    found = similarity.embedding[:, None] - similarity.embedding
    return np.square(found).sum(-1)


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
        inside = [gaps(similarity)[np.ix_(side, side)].mean() for side in (left, right)]
        return float(gaps(similarity)[left, right].mean() / np.mean(inside))

    assert contrast(found) > 2 * contrast(Similarity.of_descriptors())


def test_what_was_fitted_is_what_is_asked() -> None:
    """The numpy metric and the torch one are the same, company included."""
    torch.manual_seed(0)
    metric = _Metric(5, 7, 11, company=True)
    torch.nn.init.normal_(metric.outer.weight)
    torch.nn.init.normal_(metric.own)
    similarity = metric.fitted()
    counts = (1, 1, 3)
    a, b = np.array([[20, 22, 8], [3, 26, 9]]), np.array([[38, 22, 8], [56, 40, 16], [11, 41, 8]])
    weight = np.array([0.5, 1.0, 4.0])
    parts = metric.elements()
    points = [metric.points(parts, torch.as_tensor(x), counts) for x in (a, b)]
    expected = metric.scores(*points, 3, torch.as_tensor(np.log(weight), dtype=torch.float32))
    others = similarity.points(b, counts)
    found = [similarity.log_kernel(similarity.distances(row, counts, others), 3, weight) for row in a]
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4)


def test_order_of_like_colours_does_not_matter_and_company_does() -> None:
    torch.manual_seed(0)
    metric = _Metric(5, 7, 11, company=True)
    torch.nn.init.normal_(metric.outer.weight)
    similarity = metric.fitted()
    one, other, third = (
        similarity.points(np.array([row]), (1, 1, 3)).reshape(3, 5)
        for row in ([20, 22, 8], [22, 20, 8], [20, 22, 16])
    )
    np.testing.assert_allclose(one[[1, 0, 2]], other)
    assert np.abs(one[0] - third[0]).max() > 1e-3  # calcium in an oxide is not calcium in a sulfide
    assert similarity.distances([20, 22, 8], (1, 1, 3), one.reshape(1, -1))[0] == pytest.approx(0)


def test_learned_likeness_beats_properties() -> None:
    """Crystals' own prototypes are likelier under what was learned than under plain properties."""
    atlas = PrototypeAtlas.default()
    mean = {}
    for name, similarity in (("learned", atlas.similarity), ("properties", Similarity.of_descriptors())):
        mean[name] = _worth(Evidence(atlas.tables, similarity), (1, 1, 3))
    assert mean["learned"] > mean["properties"] + 0.1


def _worth(evidence: Evidence, counts: tuple[int, ...]) -> float:
    """Mean log share of the own prototype, for crystals of a group with others of their prototype."""
    elements, owner, weight = evidence.tables.stacked(counts)
    rows = np.flatnonzero((np.bincount(owner)[owner] > 1) & (weight >= 1.5))
    shares = []
    for row in np.random.default_rng(0).choice(rows, 100, replace=False).tolist():
        score = evidence.scores(counts, elements[row])
        score[row] = -np.inf
        shares.append(logsumexp(score[owner == owner[row]]) - logsumexp(score))
    return float(np.mean(np.maximum(shares, -20)))


def test_few_crystals_leave_the_properties_to_speak() -> None:
    clusters = Clusters()
    clusters.add(crystal("Fm-3m", "Na", "Cl"))
    found = learn(tables_of(clusters.prototypes()))
    np.testing.assert_array_equal(found.embedding, Similarity.of_descriptors().embedding)
    z = {name: atomic_number(name) for name in ("Na", "K", "Cl", "Br", "Fe", "Co")}
    for near, far in (("K", "Cl"), ("K", "Br"), ("K", "Fe")):
        assert gaps(found)[z["Na"], z[near]] < gaps(found)[z["Na"], z[far]]
    assert gaps(found)[z["Cl"], z["Br"]] < gaps(found)[z["Cl"], z["Fe"]]


def test_colours_of_twins_stand_in_one_order() -> None:
    """The two sites of rock salt are the same site: the less electronegative element comes first."""
    clusters = Clusters()
    for a, b in (("Na", "Cl"), ("Cl", "K"), ("F", "Cs"), ("O", "Mg")):
        clusters.add(crystal("Fm-3m", a, b))
    (salt,) = clusters.prototypes()
    assert [member.elements for member in salt.members] == [(11, 17), (19, 17), (55, 9), (12, 8)]
    assert tables_of([salt]).twins(0).tolist() == [0, 0]
    assert Coloured.of(crystal("Fm-3m", "Cl", "Na")).elements == (11, 17)
