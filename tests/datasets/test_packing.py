from pathlib import Path

import pytest

from crystalml.datasets.packing import training_set
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
