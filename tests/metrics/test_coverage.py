"""Coverage: the published definition read slowly, its edge cases, and polymorphs found or missed."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.errors import InputError
from crystalml.metrics.coverage import Cutoffs, coverage, polymorph_coverage

RNG = np.random.default_rng(0)


def sets(n: int = 40, m: int = 30) -> tuple[list, list, list, list]:
    return (
        list(RNG.random((n, 5))), list(RNG.random((n, 7))), list(RNG.random((m, 5))), list(RNG.random((m, 7)))
    )  # fmt: skip


def slow(s, c, s_ref, c_ref, cutoffs):
    """CDVAE's compute_cov, one pair at a time."""

    def near(a, b, limit):
        return min(np.linalg.norm(a - x) for x in b) <= limit

    def share(mine, others):
        hits = [
            near(a, others[0], cutoffs.structure) and near(b, others[1], cutoffs.composition)
            for a, b in zip(*mine, strict=True)
        ]
        return np.mean(hits)

    return share((s_ref, c_ref), (s, c)), share((s, c), (s_ref, c_ref))


def test_the_published_definition() -> None:
    found_some = set()
    for width in (0.15, 0.3, 0.45):
        cutoffs, data = Cutoffs(width, 1.6 * width), sets()
        found = coverage(*data, cutoffs)
        assert (found.recall, found.precision) == pytest.approx(slow(*data, cutoffs))
        assert found.covered.mean() == found.precision and found.reached.mean() == found.recall
        assert found.joint_recall <= found.recall and found.joint_precision <= found.precision
        found_some.add(0 < found.recall < 1)
    assert True in found_some


def test_a_set_covers_itself_and_nothing_far_away() -> None:
    s, c, *_ = sets()
    same = coverage(s, c, s, c)
    assert (same.recall, same.precision, same.joint_recall, same.joint_precision) == (1, 1, 1, 1)
    assert same.amsd == (0, 0) and same.amcd == (0, 0)
    far = coverage(s, c, [row + 9 for row in s], c)
    assert (far.recall, far.precision) == (0, 0)


def test_one_crystal_repeated_has_precision_but_no_recall() -> None:
    s, c, *_ = sets()
    cutoffs = Cutoffs(1e-6, 1e-6)
    found = coverage([s[0]] * 40, [c[0]] * 40, s, c, cutoffs)
    assert found.precision == 1 and found.recall == 1 / 40


def test_samples_without_fingerprint_count_against_precision() -> None:
    s, c, *_ = sets()
    found = coverage([None if i % 2 else row for i, row in enumerate(s)], c, s, c, Cutoffs(1e-6, 1e-6))
    assert found.precision == 0.5 and found.recall == 0.5
    with pytest.raises(InputError, match="no fingerprints"):
        coverage([None], c[:1], s, c)


def test_nearest_of_its_own_is_looser_than_joint() -> None:
    """Near one reference crystal in structure and another in composition: covered only as published."""
    s_ref, c_ref = [np.array([0.0]), np.array([9.0])], [np.array([50.0]), np.array([0.0])]
    found = coverage([np.array([0.1])], [np.array([0.1])], s_ref, c_ref, Cutoffs(0.4, 10))
    assert found.precision == 1 and found.joint_precision == 0


def carbon() -> tuple[Structure, Structure]:
    diamond = Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]])
    graphite = Structure.from_spacegroup(
        "P6_3/mmc", Lattice.hexagonal(2.46, 6.71), ["C", "C"], [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25]]
    )
    return diamond, graphite


def test_polymorphs_found_and_missed() -> None:
    diamond, graphite = carbon()
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    reference = [diamond, graphite, salt]
    half = polymorph_coverage([diamond.get_primitive_structure(), None, salt], reference)
    assert half is not None and (half.formulas, half.polymorphs, half.found) == (1, 2, 1)
    assert half.share == 0.5 and half.complete == 0 and half.best[1] is None
    both = polymorph_coverage([graphite, diamond * (1, 1, 2)], reference)
    assert both is not None and both.share == 1 and both.complete == 1
    assert both.rmse == pytest.approx(0, abs=1e-3)
    assert polymorph_coverage([salt], [salt, diamond]) is None
    none = polymorph_coverage([salt], reference)
    assert none is not None and none.found == 0 and np.isnan(none.rmse)
