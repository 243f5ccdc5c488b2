"""The benchmark of relaxations: what it disturbs, and that its shares are shares of the right things."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.benchmarks.relax import _agreement, disturbed, run
from crystalml.errors import InputError, UnsupportedError
from crystalml.relax import failed
from crystalml.relaxation.settings import RelaxSettings


@pytest.fixture
def salt() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


def test_disturbances_have_the_size_asked_for_and_are_those_of_the_seed(salt):
    big = salt.make_supercell(4, in_place=False)
    moved = disturbed(big, 0.1, 0.0, seed=1)
    delta = moved.cart_coords - big.cart_coords
    assert delta.std() == pytest.approx(0.1, rel=0.05) and moved.lattice == big.lattice
    strains = [
        np.linalg.solve(salt.lattice.matrix, disturbed(salt, 0.0, 0.03, seed).lattice.matrix) - np.eye(3)
        for seed in range(300)
    ]
    assert np.allclose(strains, np.swapaxes(strains, 1, 2))
    assert np.diagonal(strains, axis1=1, axis2=2).std() == pytest.approx(0.03, rel=0.1)
    assert disturbed(salt, 0.1, 0.03, 5) == disturbed(salt, 0.1, 0.03, 5) != disturbed(salt, 0.1, 0.03, 6)
    np.testing.assert_allclose(disturbed(salt, 0.0, 0.03, 1).frac_coords, salt.frac_coords, atol=1e-12)


def test_agreement_counts_what_converged_and_what_matches(salt):
    other = Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.4), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    results = [failed(salt, ValueError()) for _ in range(4)]
    for k, result in enumerate(results):
        result["converged"] = k < 3
    larger = salt.copy().scale_lattice(salt.volume * 1.1)
    row = _agreement("", results, [salt, larger, other, salt], [salt] * 4)
    assert (row["converged"], row["matched"], row["converged_and_matched"]) == (0.75, 0.75, 0.5)
    assert row["rms_median"] == pytest.approx(0, abs=1e-6)
    assert row["volume_error_median"] == pytest.approx(0.05, abs=1e-6)  # of 0, 0, 10 and more per cent


def test_an_untrained_potential_is_measured(shared_data, tiny_potential, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    result = run(
        shared_data, tiny_potential(), n=4, timed=2, repeats=1, settings=RelaxSettings(max_steps=3),
        out=tmp_path / "r.json", progress=False,
    )  # fmt: skip
    assert json.loads((tmp_path / "r.json").read_text())["crystals"] == 4
    start, relaxed, optimiser, model = result["rows"]
    assert start["converged"] is None and 0.01 < start["volume_error_median"] < 0.2
    for row in (relaxed, optimiser, model):
        assert 0 <= row["converged_and_matched"] <= min(row["converged"], row["matched"]) <= 1
    speed = {(row["how"], row["optimizer"]): row for row in result["speed"]}
    assert {("batch", "lbfgs"), ("batch", "fire"), ("ASE", "lbfgs"), ("ASE", "fire")} <= set(speed)
    assert all(len(row["seconds"]) == 1 and row["crystals"] == 2 for row in speed.values())
    assert max(row["evaluations"] for (how, _), row in speed.items() if how != "torch-sim") <= 2 * 4
    assert "own minimum" in capsys.readouterr().out


def test_wrong_questions(shared_data, tiny_model, tiny_potential):
    pytest.importorskip("pyarrow")
    with pytest.raises(UnsupportedError, match="no potential"):
        run(shared_data, tiny_model(), n=2)
    with pytest.raises(InputError, match="mp_20_val"):
        run(shared_data, tiny_potential(), n=2, subset="mp_20_test")
