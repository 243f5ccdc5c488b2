"""Match rates against the protocol's definition: what counts, over what, and with which gate."""

import math

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from crystalml.errors import InputError
from crystalml.metrics.match import TargetMatches, compare, match_rate, score


def rocksalt(cation: str = "Na", anion: str = "Cl") -> Structure:
    """The primitive cell: the matcher compares primitive cells, so a displacement must keep it primitive."""
    cell = 5.64 / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Structure(Lattice(cell), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def moved(structure: Structure, distance: float) -> Structure:
    copy = structure.copy()
    copy.translate_sites(0, [distance, 0, 0], frac_coords=False)
    return copy


def scrambled(structure: Structure) -> Structure:
    return Structure(Lattice.orthorhombic(2, 4, 9), structure.species, [[0, 0, 0], [0.1, 0.2, 0.1]])


GOOD, BAD = rocksalt(), scrambled(rocksalt())


def test_a_turned_and_stretched_copy_matches_without_displacement() -> None:
    """The matcher scales volumes and knows no orientation, origin or order of atoms."""
    turned = Lattice(1.05 * GOOD.lattice.matrix @ np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    copy = Structure(turned, GOOD.species[::-1], GOOD.frac_coords[::-1] + 0.3)
    result = match_rate([[copy]], [GOOD], shots=(1,))
    assert result.scores[0].match_rate == 1
    assert result.scores[0].rmse == pytest.approx(0, abs=1e-6)


def test_one_displaced_atom_has_the_expected_rms() -> None:
    """Moving 1 of N atoms by d leaves d sqrt((1 - 1/N) / N) after the best shift, over (V/N)^(1/3)."""
    n, d = len(GOOD), 0.3
    expected = d * math.sqrt((1 - 1 / n) / n) / (GOOD.volume / n) ** (1 / 3)
    [row] = compare([[moved(GOOD, d)]], [GOOD])
    assert row.rms[0] == pytest.approx(expected, rel=1e-6)


def test_shots_rates_and_best_of_n() -> None:
    predictions: list[list[Structure | None]] = [
        [moved(GOOD, 0.3), moved(GOOD, 0.1)],
        [BAD, GOOD],
        [BAD, BAD],
        [None, rocksalt("K")],
    ]
    targets = [GOOD] * 4
    result = match_rate(predictions, targets, shots=(1, 2))
    one, two = result.scores
    assert (one.matched, one.total, one.match_rate) == (1, 4, 0.25)
    assert (two.matched, two.match_rate) == (2, 0.5)
    rms = [row.rms for row in result.targets]
    assert rms[3] == [None, None]
    assert rms[0][0] is not None
    assert rms[0][1] is not None
    assert one.rmse == pytest.approx(rms[0][0])  # over matched targets only
    assert two.rmse == pytest.approx((rms[0][1] + 0) / 2, abs=1e-6)  # the smaller one counts
    assert one.match_rate_interval[0] <= one.match_rate <= one.match_rate_interval[1]
    assert result.timeouts == 0


def test_nothing_matched_has_no_rmse() -> None:
    [only] = match_rate([[BAD]], [GOOD], shots=(1,)).scores
    assert only.match_rate == 0
    assert math.isnan(only.rmse)


def test_time_out_is_no_match_and_is_counted() -> None:
    result = match_rate([[GOOD]], [GOOD], shots=(1,), timeout=1e-6)
    assert result.scores[0].matched == 0
    assert result.timeouts == 1


def test_processes_change_nothing() -> None:
    predictions = [[moved(GOOD, 0.1 * i)] for i in range(4)]
    seen: list[int] = []
    alone = compare(predictions, [GOOD] * 4)
    assert compare(predictions, [GOOD] * 4, processes=2, progress=seen.append) == alone
    assert seen == [1, 2, 3, 4]


def row(rms: list[float | None], valid: list[bool | None], target_valid: bool) -> TargetMatches:
    return TargetMatches("NaCl", rms, valid, target_valid, 0)


def test_the_median_is_over_all_targets() -> None:
    """A bad match in addition raises the RMSE, not the median; with fewer than half it is infinite."""
    table = [row([value], [True], True) for value in (0.01, 0.02, 0.03, None)]
    more = [*table[:3], row([0.4], [True], True)]
    assert (
        score(table, 1, gated=False).rms_median
        == score(more, 1, gated=False).rms_median
        == pytest.approx(0.025)
    )
    assert score(more, 1, gated=False).rmse > score(table, 1, gated=False).rmse
    assert math.isinf(score(table[2:], 1, gated=False).rms_median)


def test_gate_asks_the_target_in_one_shot_only() -> None:
    """DiffCSP's RecEval asks prediction and target, its RecEvalBatch the prediction alone."""
    table = [row([0.1, 0.2], [True, True], False), row([0.3, 0.1], [False, True], True)]
    assert score(table, 1, gated=True).matched == 0
    assert score(table, 1, gated=False).matched == 2
    two = score(table, 2, gated=True)
    assert two.matched == 2
    assert two.rmse == pytest.approx(0.1)
    assert score(table[1:], 2, gated=True).rmse == pytest.approx(0.1)


def test_gate_on_real_crystals() -> None:
    pytest.importorskip("smact", reason="the composition test needs the extra `metrics`")
    odd = rocksalt("Na", "He")  # helium has no oxidation states
    table = compare([[GOOD, BAD], [odd, odd]], [GOOD, odd], gated=True)
    assert [r.target_valid for r in table] == [True, False]
    assert table[0].valid == [True, None]
    assert score(table, 2, gated=True).matched == 1
    assert score(table, 2, gated=False).matched == 2


def test_bootstrap_interval_has_the_binomial_width() -> None:
    table = [row([0.1] if i % 2 else [None], [None], True) for i in range(400)]
    low, high = score(table, 1, gated=False).match_rate_interval
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.1)
    assert score(table, 1, gated=False, seed=1) == score(table, 1, gated=False, seed=1)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(InputError, match="1 lists of predictions for 2 targets"):
        compare([[GOOD]], [GOOD, GOOD])
    with pytest.raises(InputError, match="20 shots of 1 targets with up to 1"):
        match_rate([[GOOD]], [GOOD], shots=(20,))
    with pytest.raises(InputError, match="gate"):
        score(compare([[GOOD]], [GOOD]), 1, gated=True)
