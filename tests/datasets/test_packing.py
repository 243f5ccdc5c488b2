from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crystalml.datasets.arrays import Arrays
from crystalml.datasets.crysdb import ENERGY, ENERGY_FILLED
from crystalml.datasets.packing import MAX_GAP, _aligned, training_set
from crystalml.errors import InputError


def test_frames_join_the_crystals_on_one_energy_scale(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    data = training_set(shared_data, "val", max_atoms=4, num_frames=50)
    frame = data.labels["off_equilibrium"] == 1
    assert int(frame.sum()) == 50 and len(data) > 500
    energy = data.labels["energy"]
    assert energy[frame].isfinite().all()
    assert -6 < energy[frame].median() < 2 and -6 < energy[~frame].nanmedian() < 2
    assert int(data.num_atoms.max()) <= 4


def test_subsets_by_benchmark_and_label(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    data = training_set(shared_data, "val", max_atoms=3, benchmark="mp_20_val", labelled=True)
    assert (
        len(data) > 300 and (data.labels["benchmark"] == 2).all() and data.labels["energy"].isfinite().all()
    )
    with pytest.raises(InputError, match="mp_20_train"):
        training_set(shared_data, benchmark="mp_21")


def test_frames_bring_forces_and_stresses(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    data = training_set(shared_data, "val", max_atoms=3, num_frames=40, forces=True)
    x = data[list(range(len(data)))]
    frame = x.labels["off_equilibrium"] == 1
    assert int(frame.sum()) == 40
    forces, stress = x.site_labels["forces"], x.labels["stress"]
    assert forces[frame[x.index]].isfinite().all() and forces[~frame[x.index]].isnan().all()
    assert stress[frame].isfinite().all() and stress[~frame].isnan().all()
    assert 1e-4 < stress[frame].abs().median() < 0.5  # eV/A^3
    assert "forces" not in training_set(shared_data, "val", max_atoms=2, num_frames=5).site_labels


def test_aligned_frames_agree_with_their_crystals():
    """The undistorted frame takes the DFT energy, rattled ones move along, others stay as they are."""
    n = 6
    pool = Arrays(
        np.full(n, 29, np.int8), np.zeros((n, 3), np.float32), np.ones((n, 3, 3), np.float32),
        np.ones(n, np.int64), {ENERGY: np.array([0.1, 0.4, 0.2, 1.0, 1.3, 0.7], np.float32)},
        ["a", "a", "a", "b", "b", "c"], {},
        {"kind": np.array(["equilibrium", "rattled", "decorated", "equilibrium", "rattled", "rattled"])},
    )  # fmt: skip
    crystals = replace(pool[[0, 3]], labels={ENERGY_FILLED: np.array([0.15, 2.0], np.float32)})
    moved = _aligned(pool, pool, crystals).labels[ENERGY]
    np.testing.assert_allclose(moved, [0.15, 0.45, 0.2, 1.0, 1.3, 0.7], atol=1e-6)


def test_aligning_moves_energies_a_little(shared_data):
    plain, aligned = (
        training_set(shared_data, "val", max_atoms=3, num_frames=200, forces=True, align=align)
        for align in (False, True)
    )
    gap = (aligned.labels["energy"] - plain.labels["energy"]).abs()
    frames = plain.labels["off_equilibrium"] == 1
    assert (gap[~frames].nan_to_num() == 0).all()
    assert 0 < gap[frames].mean() < 0.05 and gap.nan_to_num().max() <= MAX_GAP + 1e-6


def test_relaxed_crystals_carry_zero_forces_and_stresses_where_asked(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    plain, minima = (training_set(shared_data, "val", max_atoms=3, minima=m) for m in (False, True))
    assert not plain.site_labels and "stress" not in plain.labels
    assert (minima.site_labels["forces"] == 0).all() and (minima.labels["stress"] == 0).all()
    assert minima.site_labels["forces"].shape == minima.frac.shape
    both = training_set(shared_data, "val", max_atoms=3, num_frames=40, forces=True, minima=True)
    frame = both.labels["off_equilibrium"] == 1
    assert both.labels["stress"].isfinite().all() and both.labels["stress"][frame].abs().median() > 1e-4
